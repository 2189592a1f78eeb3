"""Searches that need a dozen lines each: even draws, hill-climbing, cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from prunegym.agents.search.base import Actions, Space


class RandomSearch:
    """Even draws from the whole box, each independent of the others."""

    GENERATION = 8  # any number makes the same draws; this many can be evaluated at once

    def __init__(self, gated: Sequence[bool], seed: int) -> None:
        self._space = Space(tuple(gated))
        self._rng = np.random.default_rng(seed)

    def propose(self) -> list[Actions]:
        """Return fresh draws."""
        draws = self._rng.uniform(-1.0, 1.0, size=(self.GENERATION, self._space.size))
        return [self._space.actions(draw) for draw in draws]

    def tell(self, proposals: Sequence[Actions], totals: Sequence[float]) -> None:
        """Learn nothing: that is the point of this baseline."""

    def answer(self) -> None:
        """Return None: nothing was learned."""


class HillClimbing:
    """A (1+1) evolution strategy: change a few numbers of the best plan, keep the change if it is no worse.

    The step size follows the one-fifth rule: it stays where one step in five is kept (Rechenberg, 1973).
    """

    COORDINATES = 3  # changed at once, at most
    FIRST_STEP, SMALLEST_STEP, LARGEST_STEP = 0.2, 0.02, 1.0
    GROWTH = math.exp(1 / 3)  # after a step that was kept; after another, its fourth root back

    def __init__(self, gated: Sequence[bool], seed: int) -> None:
        self._space = Space(tuple(gated))
        self._rng = np.random.default_rng(seed)
        self._best = np.zeros(self._space.size)
        self._total: float | None = None
        self._step = self.FIRST_STEP

    def propose(self) -> list[Actions]:
        """Return one episode: the start, then a step from the best so far."""
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
        # equal counts as kept: too small a step makes the same rounded plan, and must grow
        kept = self._total is None or total >= self._total
        if kept:
            self._best, self._total = self._space.vector(proposal), total
        step = self._step * (self.GROWTH if kept else self.GROWTH**-0.25)
        self._step = min(max(step, self.SMALLEST_STEP), self.LARGEST_STEP)

    def answer(self) -> None:
        """Return None: it would decide the best plan seen."""


class CrossEntropy:
    """A Gaussian with independent coordinates, refitted to the best quarter of each generation."""

    GENERATION = 20
    ELITE = 5
    FIRST_DEVIATION, SMALLEST_DEVIATION = 0.4, 0.05  # the floor keeps it from settling too early

    def __init__(self, gated: Sequence[bool], seed: int) -> None:
        self._space = Space(tuple(gated))
        self._rng = np.random.default_rng(seed)
        self._mean = np.zeros(self._space.size)
        self._deviation = np.full(self._space.size, self.FIRST_DEVIATION)

    def propose(self) -> list[Actions]:
        """Return draws from the Gaussian, clipped to the box."""
        draws = self._rng.normal(self._mean, self._deviation, size=(self.GENERATION, self._space.size))
        return [self._space.actions(draw) for draw in draws]

    def tell(self, proposals: Sequence[Actions], totals: Sequence[float]) -> None:
        """Refit the Gaussian to the proposals of the highest totals."""
        order = np.argsort(-np.asarray(totals), kind="stable")[: self.ELITE]
        elite = np.stack([self._space.vector(proposals[place]) for place in order])
        self._mean = elite.mean(axis=0)
        self._deviation = elite.std(axis=0).clip(self.SMALLEST_DEVIATION)

    def answer(self) -> Actions:
        """Return the mean of the Gaussian."""
        return self._space.actions(self._mean)
