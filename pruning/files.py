"""Files that appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunegym.pruning.errors import PruningError, written_to


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends without an error.

    Example:
        >>> with written_whole(Path("/tmp/prunegym-example.txt")) as temporary:
        ...     _ = temporary.write_text("all of it")
        >>> Path("/tmp/prunegym-example.txt").read_text()
        'all of it'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        with written_to(path):
            yield temporary
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp made it private; a result is an ordinary file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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


def write_json(path: Path, data: Any) -> None:
    """Write `data` as JSON with a final newline; NaN is refused, since JSON has none."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Return the data in a JSON file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON, holds NaN or infinity, a key twice, or is nested too deeply to read.
    """
    text = path.read_text(encoding="utf-8")
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_with_unique_keys)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which JSON has not")


def _with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {twice!r} is given twice")
    return entries
