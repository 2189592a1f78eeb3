"""The searches by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from prunegym.agents.named import Named
from prunegym.agents.search.base import Search
from prunegym.agents.search.evolution import CmaEs
from prunegym.agents.search.methods import CrossEntropy, HillClimbing, RandomSearch

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
