"""What can be asked for by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

from agents.errors import UnknownAlgorithmError

T = TypeVar("T")


class Named(dict[str, T]):
    """Entries by name; asking for another names the nearest and lists the rest."""

    def __init__(self, kind: str, entries: Mapping[str, T]) -> None:
        super().__init__(entries)
        self._kind = kind

    def __missing__(self, name: str) -> T:
        near = difflib.get_close_matches(name, self, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnknownAlgorithmError(f"no {self._kind} named {name!r}.{hint} Known: {', '.join(sorted(self))}")
