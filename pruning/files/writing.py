"""Files and folders that appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import fcntl
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prunegym.pruning.machine_failures import written_to

TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.partial", re.DOTALL)  # names of what is being written


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends without an error.

    Example:
        >>> with written_whole(Path("/tmp/prunegym-example.txt")) as temporary:
        ...     _ = temporary.write_text("all of it")
        >>> Path("/tmp/prunegym-example.txt").read_text()
        'all of it'
    """
    with _temporary(path, folder=False) as temporary:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # it was private; a result is an ordinary file
        os.replace(temporary, path)


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its place when the block ends without an error."""
    with _temporary(path, folder=True) as scratch:
        fresh, stale = scratch / "fresh", scratch / "stale"
        fresh.mkdir()
        yield fresh
        if path.exists():
            path.rename(stale)
        fresh.rename(path)


def is_temporary(path: Path) -> bool:
    """Return whether a file or folder is one of those that are renamed once they are whole."""
    return TEMPORARY.fullmatch(path.name) is not None


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files and folders that processes left below a folder when they died."""
    for place, folders, files in os.walk(folder):
        temporary = [name for name in (*folders, *files) if is_temporary(Path(name))]
        folders[:] = [name for name in folders if name not in temporary]
        for name in temporary:
            _remove_if_abandoned(Path(place, name))


@contextmanager
def _temporary(path: Path, *, folder: bool) -> Iterator[Path]:
    """Yield a new temporary file or folder beside `path`, locked while it is written, and remove it after.

    The lock tells others that its process is alive. Those of the same path that are not locked are removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for other in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        if is_temporary(other):
            _remove_if_abandoned(other)
    temporary, lock = _made_and_locked(path, folder=folder)
    try:
        with written_to(path):
            yield temporary
    finally:
        os.close(lock)
        with suppress(OSError):
            remove(temporary)


def _made_and_locked(path: Path, *, folder: bool) -> tuple[Path, int]:
    while True:
        how: Any = {"dir": path.parent, "prefix": f".{path.name}.", "suffix": ".partial"}
        if folder:
            name = tempfile.mkdtemp(**how)
            lock = os.open(name, os.O_RDONLY)
        else:
            lock, name = tempfile.mkstemp(**how)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_nlink:  # else another process took it for abandoned before it was locked
            return Path(name), lock
        os.close(lock)


def _remove_if_abandoned(temporary: Path) -> None:
    try:
        lock = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:  # it is gone, or none of ours
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove(temporary)
    except OSError:  # its process is at work
        pass
    finally:
        os.close(lock)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that it holds."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
