"""Registries: dictionaries that refuse duplicates, suggest the nearest name and list the rest."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeVar

from prunegym.pruning.errors import UnknownNameError

T = TypeVar("T")


def unknown_name(kind: str, name: str, known: Collection[str]) -> UnknownNameError:
    """Return the error for a `name` that is not among the `known` ones, with the nearest as a hint."""
    return UnknownNameError(
        f"no {kind} named {name!r}.{nearest_hint(name, known)} Known: {', '.join(sorted(known))}"
    )


def nearest_hint(name: str, known: Collection[str]) -> str:
    """Return the question whether the `known` name nearest to `name` was meant; nothing if none is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


class Registry(Mapping[str, T]):
    """Named plug-ins of one kind.

    Example:
        >>> shapes: Registry[int] = Registry("shape")
        >>> shapes.register("square")(4)
        4
        >>> shapes["square"], list(shapes)
        (4, ['square'])
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers its argument as `name`; a second of that name is refused."""
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered twice")

        def file(entry: T) -> T:
            self._entries[name] = entry
            return entry

        return file

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise unknown_name(self.kind, name, self._entries)
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries
