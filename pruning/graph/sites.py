"""Sites: the places of a network where a plan can decide something, in execution order."""

from __future__ import annotations

from dataclasses import dataclass

from prunegym.pruning.graph.records import ChannelGraph, ChannelGroup


@dataclass(frozen=True)
class Site:
    """A place where one step decides: a group of coupled channels, a layer, or both."""

    name: str
    group: ChannelGroup | None  # the prunable group whose channels are decided here
    layer: str | None  # the layer that techniques for single layers decide about here


def find_sites(graph: ChannelGraph) -> tuple[Site, ...]:
    """Return the sites of a network in execution order.

    There is one for each prunable group, named as the group, and one for each further convolution or linear
    layer, named as the layer. A layer is decided at the site of the first group that it is the first writer
    of, else at its own. Layers that the user protects have none.
    """
    order = {name: index for index, name in enumerate(graph.layers)}
    decided: set[str] = set()
    found: list[tuple[int, Site]] = []
    for group in graph.prunable:
        first = group.layers[0]
        found.append((order[first], Site(group.name, group, None if first in decided else first)))
        decided.add(first)
    others = (name for name in graph.layers if name not in decided and name not in graph.protected)
    found += [(order[name], Site(name, None, name)) for name in others]
    return tuple(site for _, site in sorted(found, key=lambda entry: entry[0]))
