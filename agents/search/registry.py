"""The registry of searches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from prunegym.agents.search.base import Search
from prunegym.agents.search.evolution import CmaEs
from prunegym.agents.search.methods import CrossEntropy, HillClimbing, RandomSearch
from prunegym.pruning.registry import Registry

Make: TypeAlias = Callable[[NDArray[np.bool_], int], Search]  # (entries with an effect, seed) -> search

SEARCHES: Registry[Make] = Registry("search")
SEARCHES.register("random")(RandomSearch)
SEARCHES.register("hill-climbing")(HillClimbing)
SEARCHES.register("cross-entropy")(CrossEntropy)
SEARCHES.register("cma-es")(CmaEs)
