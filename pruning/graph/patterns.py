"""Admit or freeze groups by shell-style patterns on layer names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from prunegym.pruning.errors import UnknownNameError
from prunegym.pruning.graph.records import ChannelGraph


def restrict(graph: ChannelGraph, *, only: Sequence[str] = (), protect: Sequence[str] = ()) -> ChannelGraph:
    """Return the graph with the groups frozen that the user wants left alone.

    Args:
        graph: the network's groups.
        only: if there are any, a group is admitted if all its writers match one of them.
        protect: a group is frozen if any of its writers matches one of them.

    Raises:
        UnknownNameError: a pattern matches no layer that writes prunable channels.
    """
    writers = {layer for group in graph.groups for layer in group.layers}
    for pattern in (*only, *protect):
        if not any(fnmatchcase(layer, pattern) for layer in writers):
            parts = [layer.split(".") for layer in writers]
            blocks = {".".join(names[:depth]) for names in parts for depth in range(1, len(names))}
            known = [*sorted(writers), *(f"{block}.*" for block in sorted(blocks))]
            near = difflib.get_close_matches(pattern, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UnknownNameError(
                f"no layer matches the pattern {pattern!r}.{hint} `prunegym describe` lists them"
            )
    groups = []
    for group in graph.groups:
        if group.frozen is None and only and not all(_matches(layer, only) for layer in group.layers):
            group = replace(group, frozen="not admitted by --only", ungated="it is frozen")
        if group.frozen is None and any(_matches(layer, protect) for layer in group.layers):
            group = replace(group, frozen="protected by --protect", ungated="it is frozen")
        groups.append(group)
    protected = {
        layer for layer in graph.layers if _matches(layer, protect) or (only and not _matches(layer, only))
    }
    return replace(graph, groups=tuple(groups), protected=frozenset(protected))


def _matches(layer: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(layer, pattern) for pattern in patterns)
