"""The searches by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from agents.named import Named
from agents.search.base import Search
from agents.search.evolution import CmaEs
from agents.search.methods import CrossEntropy, HillClimbing, RandomSearch

Make: TypeAlias = Callable[[Sequence[bool], int], Search]  # (gated, seed) -> search

SEARCHES: Named[Make] = Named(
    "search",
    {
        "random": RandomSearch,
        "hill-climbing": HillClimbing,
        "cross-entropy": CrossEntropy,
        "cma-es": CmaEs,
    },
)
