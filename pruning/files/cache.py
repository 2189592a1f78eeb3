"""The cache: files that can be made again, each with a checksum, since a damaged one must not be believed."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from prunegym.pruning.errors import PruningError
from prunegym.pruning.files.writing import written_whole

logger = logging.getLogger(__name__)


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
