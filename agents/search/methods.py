"""Three short searches: random search, hill climbing and the cross-entropy method."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prunegym.agents.search.base import Actions, Space


class RandomSearch:
    """Random search: independent uniform draws from the whole box."""

    GENERATION = 8  # episodes; any number makes the same draws, so many can be evaluated at once

    def __init__(self, admitted: NDArray[np.bool_], seed: int) -> None:
        self._space = Space(admitted)
        self._rng = np.random.default_rng(seed)

    def propose(self) -> list[Actions]:
        """Return a generation of new draws."""
        draws = self._rng.uniform(-1.0, 1.0, size=(self.GENERATION, self._space.size))
        return [self._space.actions(draw) for draw in draws]

    def tell(self, proposals: Sequence[Actions], totals: Sequence[float]) -> None:
        """Do nothing: draws do not depend on earlier rewards."""

    def answer(self) -> None:
        """Return None: the best episode evaluated is the result."""


class HillClimbing:
    """A (1+1) evolution strategy: change a few coordinates of the best plan, keep the change if no worse.

    The step size follows the one-fifth rule: it is constant if one step in five is kept (Rechenberg, 1973).
    """

    COORDINATES = 3  # changed at once, at most
    FIRST_STEP, MIN_STEP, MAX_STEP = 0.2, 0.02, 1.0
    GROWTH = math.exp(1 / 3)  # factor of the step size after a kept step; after others it is GROWTH**(-1/4)

    def __init__(self, admitted: NDArray[np.bool_], seed: int) -> None:
        self._space = Space(admitted)
        self._rng = np.random.default_rng(seed)
        self._best = np.zeros(self._space.size)
        self._total: float | None = None
        self._step = self.FIRST_STEP

    def propose(self) -> list[Actions]:
        """Return one episode: at first the uniform plan, then a step from the best so far."""
        if self._total is None:
            return [self._space.actions(self._best)]
        size = self._space.size
        chosen = self._rng.choice(size, size=min(size, self.COORDINATES), replace=False)
        vector = self._best.copy()
        vector[chosen] += self._step * self._rng.standard_normal(len(chosen))
        return [self._space.actions(vector)]

    def tell(self, proposals: Sequence[Actions], totals: Sequence[float]) -> None:
        """Move to the proposal if it is no worse, and adapt the step size."""
        (proposal,), (total,) = proposals, totals
        # equal rewards count as kept: too small a step gives the same rounded plan, and has to grow
        kept = self._total is None or total >= self._total
        if kept:
            self._best, self._total = self._space.vector(proposal), total
        step = self._step * (self.GROWTH if kept else self.GROWTH**-0.25)
        self._step = min(max(step, self.MIN_STEP), self.MAX_STEP)

    def answer(self) -> None:
        """Return None: the best episode evaluated is the result."""


class CrossEntropy:
    """The cross-entropy method: a diagonal Gaussian, refitted to the best quarter of each generation."""

    GENERATION = 20  # episodes
    ELITE = 5  # episodes
    FIRST_STD, MIN_STD = 0.4, 0.05  # the lower bound prevents premature convergence

    def __init__(self, admitted: NDArray[np.bool_], seed: int) -> None:
        self._space = Space(admitted)
        self._rng = np.random.default_rng(seed)
        self._mean = np.zeros(self._space.size)
        self._std = np.full(self._space.size, self.FIRST_STD)

    def propose(self) -> list[Actions]:
        """Return draws from the Gaussian, clipped to the box."""
        draws = self._rng.normal(self._mean, self._std, size=(self.GENERATION, self._space.size))
        return [self._space.actions(draw) for draw in draws]

    def tell(self, proposals: Sequence[Actions], totals: Sequence[float]) -> None:
        """Refit the Gaussian to the proposals with the highest totals."""
        order = np.argsort(-np.asarray(totals), kind="stable")[: self.ELITE]
        elite = np.stack([self._space.vector(proposals[index]) for index in order])
        self._mean = elite.mean(axis=0)
        self._std = elite.std(axis=0).clip(self.MIN_STD)

    def answer(self) -> Actions:
        """Return the mean of the Gaussian."""
        return self._space.actions(self._mean)
