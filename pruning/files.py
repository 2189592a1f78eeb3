"""Files and folders that appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

MAX_DEPTH = 50  # of the lists and objects in a JSON file; those of any record are nested a dozen deep
_START_BYTES = 256
_FOREIGN = {  # the beginning, in lower case, of files that are given by mistake -> what they are
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; run git lfs pull",
    b"<!doctype html": "a web page; download the file itself",
    b"<html": "a web page; download the file itself",
    b"\x89png": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"%pdf": "a PDF document",
    b"\x1f\x8b": "compressed by gzip; unpack it",
}
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


def cache_folder() -> Path:
    """Return the folder for files that can be made again, kept between runs.

    `$PRUNEGYM_CACHE`, `$XDG_CACHE_HOME/prunegym` or `~/.cache/prunegym`; it need not exist yet.
    """
    if folder := os.environ.get("PRUNEGYM_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prunegym"


def read_cached(path: Path) -> bytes | None:
    """Return what `write_cached` put into a file of the cache; None if it is not there, or damaged."""
    try:
        checksum, _, content = path.read_bytes().partition(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        logger.warning("%s cannot be read and is left aside: %s", path, error)
        return None
    if checksum != _checksum(content):
        logger.warning("%s is damaged and left aside", path)
        return None
    return content


def write_cached(path: Path, content: bytes) -> None:
    """Put into a file of the cache its checksum, a newline, and the content; if that fails, only warn."""
    try:
        with written_whole(path) as temporary:
            temporary.write_bytes(_checksum(content) + b"\n" + content)
    except OSError as error:  # a read-only home must not stop the work
        logger.warning("%s is not cached and will be made again next time: %s", path, error)


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def write_json(path: Path, data: Any) -> None:
    """Write `data` as JSON with a final newline; NaN is refused, since JSON has none."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Return the data in a JSON file.

    Raises:
        OSError: the file cannot be read.
        ValueError: see `parse_json`.
    """
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        if found := foreign_content(path):
            raise ValueError(f"it is {found}") from error
        raise


def parse_json(text: bytes) -> Any:
    """Return the data in JSON text, UTF-8.

    Raises:
        ValueError: it is not JSON, holds NaN, infinity or half a surrogate pair, a key twice, or is nested
            more than MAX_DEPTH deep.
    """
    try:
        data = json.loads(
            text.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_with_unique_keys
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if b"\\ud" in text.lower():
        try:
            json.dumps(data, ensure_ascii=False).encode("utf-8")
        except (UnicodeEncodeError, RecursionError) as error:
            raise ValueError("it holds half of a surrogate pair, which is no character") from error
    level, depth = [data], 0
    while level := [part for node in level for part in _parts(node)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError("it is nested too deeply")
    return data


def _parts(node: Any) -> Collection[Any]:
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list) else ()


def foreign_content(path: Path) -> str | None:
    """Return what a file of something else is, with the way out, or None; for files that cannot be read."""
    with path.open("rb") as file:
        start = file.read(_START_BYTES).lstrip().lower()
    if path.stat().st_size == 0:
        return "an empty file; copy or download it anew"
    return next((found for signature, found in _FOREIGN.items() if start.startswith(signature)), None)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which JSON has not")


def _with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {twice!r} is given twice")
    return entries
