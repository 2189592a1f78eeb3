"""Files and folders that appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import itertools
import json
import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from prunegym.pruning.errors import PruningError, one_line, written_to

logger = logging.getLogger(__name__)

TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.partial", re.DOTALL)  # names of what is being written
MAX_DEPTH = 50  # of the lists and objects in a JSON file; those of any record are nested a dozen deep
MAX_YAML_CHARACTERS, MAX_YAML_DEPTH = 100_000, 20  # a file of flags has a few hundred, and lists in mappings
TOO_LONG = f"it is longer than {MAX_YAML_CHARACTERS} characters, its aliases written out"
MAX_DIGITS = 300  # of a number in YAML; floats have not many more before the point
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


def cache_folder() -> Path:
    """Return the folder for files that can be made again, kept between runs.

    `$PRUNEGYM_CACHE`, `$XDG_CACHE_HOME/prunegym` or `~/.cache/prunegym`; it need not exist yet.

    Raises:
        PruningError: this user has no home, and no variable names a folder.
    """
    if folder := os.environ.get("PRUNEGYM_CACHE"):
        return Path(folder)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prunegym"
    except RuntimeError as error:
        raise PruningError("this user has no home for the cache; set PRUNEGYM_CACHE to a folder") from error


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
        ValueError: it is not JSON, holds NaN, infinity, a number that no float can hold or half a surrogate
            pair, a key twice, or is nested more than MAX_DEPTH deep.
    """
    try:
        data = json.loads(
            text.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_int=_whole,
            parse_float=_finite,
            object_pairs_hook=_with_unique_keys,
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


def _whole(text: str) -> int:
    _finite(text)
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it holds the number {shortened(text)}, which is too large")
    return value


def _with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {twice!r} is given twice")
    return entries


def read_yaml(path: Path) -> Any:
    """Return the data in a YAML file.

    Raises:
        OSError: the file cannot be read.
        ValueError: see `parse_yaml`.
    """
    with path.open(encoding="utf-8") as file:
        return parse_yaml(file.read(MAX_YAML_CHARACTERS + 1))


def parse_yaml(text: str) -> Any:
    """Return the data in YAML text.

    Raises:
        ValueError: it is not plain YAML, holds a number of more than MAX_DIGITS characters, is nested more
            deeply than MAX_YAML_DEPTH, or is longer than MAX_YAML_CHARACTERS with its aliases written out.
    """
    if len(text) > MAX_YAML_CHARACTERS:
        raise _TooLargeError(TOO_LONG)
    try:
        if (node := yaml.compose(text, yaml.SafeLoader)) is not None:
            _check_extent(node)
        return yaml.safe_load(text)
    except _TooLargeError:
        raise
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except Exception as error:  # PyYAML raises a dozen kinds, by what is wrong
        raise ValueError(f"it is not plain YAML ({one_line(error)})") from error


class _TooLargeError(ValueError):
    pass


def _check_extent(node: yaml.Node) -> None:
    """Refuse what would take long to work with, although aliases may let it look short."""
    length, depth = _extent(node, {})
    if length > MAX_YAML_CHARACTERS:
        raise _TooLargeError(TOO_LONG)
    if depth > MAX_YAML_DEPTH:
        raise _TooLargeError(f"it is nested more deeply than {MAX_YAML_DEPTH}")


def _extent(node: yaml.Node, known: dict[int, tuple[float, int]]) -> tuple[float, int]:
    """Return the characters and the depth of a YAML node with aliases written out; each is counted once."""
    if id(node) not in known:
        known[id(node)] = math.inf, 0  # until it is counted, for an alias inside itself
        if isinstance(node, yaml.ScalarNode):
            if node.tag.endswith((":int", ":float")) and len(node.value) > MAX_DIGITS:
                raise _TooLargeError(f"it holds the number {shortened(node.value)}, which is too large")
            known[id(node)] = len(node.value) + 1, 1
        else:
            parts = itertools.chain(*node.value) if isinstance(node, yaml.MappingNode) else node.value
            extents = [_extent(part, known) for part in parts]
            length, depth = sum(one[0] for one in extents), max((one[1] for one in extents), default=0)
            known[id(node)] = length + 1, depth + 1
    return known[id(node)]


def shortened(text: str) -> str:
    """Return text of at most 40 characters, for a message: the middle of a longer one is left out."""
    return text if len(text) <= 40 else f"{text[:18]}...{text[-18:]}"
