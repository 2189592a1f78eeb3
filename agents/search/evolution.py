"""Covariance matrix adaptation, by its author's package `cma`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prunegym.agents.search.base import Actions, Space, Vector


class CmaEs:
    """CMA-ES: a Gaussian whose whole covariance adapts (Hansen and Ostermeier, 2001), within bounds."""

    FIRST_STD = 0.3

    def __init__(self, admitted: NDArray[np.bool_], seed: int) -> None:
        # imported late, as it takes a second and only this search needs it
        import cma  # type: ignore[import-untyped]  # it ships no types

        self._space = Space(admitted)
        rng = np.random.default_rng(seed)
        options = {
            "bounds": [-1.0, 1.0],
            "randn": lambda *shape: rng.standard_normal(shape),  # else it seeds NumPy's global state
            "verbose": -9,  # no text, no files
        }
        self._strategy = cma.CMAEvolutionStrategy(np.zeros(self._space.size), self.FIRST_STD, options)
        self._asked: list[Vector] = []

    def propose(self) -> list[Actions]:
        """Return a generation, within the bounds; its size grows with the logarithm of the dimension."""
        self._asked = self._strategy.ask()
        return [self._space.actions(vector) for vector in self._asked]

    def tell(self, proposals: Sequence[Actions], totals: Sequence[float]) -> None:
        """Adapt mean, step size and covariance."""
        # not the float32 proposals: `cma` takes vectors that it does not know for injected ones
        self._strategy.tell(self._asked, [-total for total in totals])

    def answer(self) -> Actions:
        """Return the mean, mapped into the bounds in the same way as the samples."""
        return self._space.actions(self._strategy.result.xfavorite)
