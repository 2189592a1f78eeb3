"""The file in which a long benchmark keeps what it has measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pruning.files import read_json
from scripts.options import UsageError


def begun(path: Path | None, *, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return what a file of results holds so far; nothing where there is none.

    Args:
        path: of the file, or None.
        fits: whether a record is one of this benchmark's.

    Raises:
        UsageError: the file holds something else.
    """
    if path is None or not path.exists():
        return {}
    try:
        record = read_json(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} holds no results ({error}); give another --out") from error
    if not isinstance(record, dict) or not fits(record):
        raise UsageError(f"{path} holds no results of this benchmark; give another --out")
    return record
