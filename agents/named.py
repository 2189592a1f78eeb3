"""What can be asked for by name."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import TypeVar

from prunegym.agents.errors import UnknownAlgorithmError

T = TypeVar("T")


def nearest(name: str, known: Collection[str]) -> str:
    """Return a question that names the one of the `known` nearest to `name`; nothing if none is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


class Named(dict[str, T]):
    """Entries by name; asking for another names the nearest and lists the rest."""

    def __init__(self, kind: str, entries: Mapping[str, T]) -> None:
        super().__init__(entries)
        self._kind = kind

    def __missing__(self, name: str) -> T:
        known = ", ".join(sorted(self))
        raise UnknownAlgorithmError(f"no {self._kind} named {name!r}.{nearest(name, self)} Known: {known}")
