"""What a file holds: what was meant, or something else that is given by mistake."""

from __future__ import annotations

import hashlib
from pathlib import Path

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


def foreign_content(path: Path) -> str | None:
    """Return what a file of something else is, with the way out, or None; for files that cannot be read."""
    with path.open("rb") as file:
        start = file.read(_START_BYTES).lstrip().lower()
    if path.stat().st_size == 0:
        return "an empty file; copy or download it anew"
    return next((found for signature, found in _FOREIGN.items() if start.startswith(signature)), None)


def read_described(path: Path, sha256: object, *, description: str, way_out: str) -> bytes:
    """Return the bytes of a file that another one describes by their hash.

    Args:
        path: the file.
        sha256: its hash, as the description says.
        description: the name of the description, for the message.
        way_out: what to do if it is another file, for the message.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not the file that was described; the message names what it is.
    """
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        found = foreign_content(path) or f"not the file that {description} describes; {way_out}"
        raise ValueError(f"{path} is {found}")
    return content
