"""The even plan of a budget, uniform pruning: the baseline that rewards and expected losses refer to."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from prunegym.envs.allocation import uniform_plan
from prunegym.envs.budget_projection import BudgetProjection
from prunegym.envs.results import PlanScorer
from prunegym.envs.reward import MIN_REFERENCE_LOSS
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.technique import Levels

MIN_LOO_GAIN = 0.01  # what is measured below it is noise
MIN_SITE_LOSS = 1e-3  # of a site in the even plan; multiples of less than that say nothing


class UniformBaseline:
    """The even plan within a budget, and the leave-one-out gain of each site.

    Args:
        uniform: levels of the even plan.
        measure: from these levels, measures the leave-one-out gains: [sites].
    """

    def __init__(self, uniform: Levels, measure: Callable[[Levels], NDArray[np.float64]]) -> None:
        self.uniform = uniform
        self._measure = measure

    @cached_property
    def loo_gain(self) -> NDArray[np.float64]:
        """Leave-one-out gain, [sites] in [0, 1].

        The fraction of the even plan's loss that disappears when only this site is left alone:
        1 - loss(even plan without this site) / loss(even plan). Computed when first asked for, at one
        evaluation for each site.
        """
        return self._measure(self.uniform)


class UniformBaselines:
    """Measures uniform pruning once for each budget.

    Gains are measured by leaving each site out of the even plan, not by compressing it alone: see
    docs/decisions.md, D43.

    Args:
        network: the network that is compressed.
        scorer: scores its plans, on a few images.
    """

    def __init__(self, network: PrunableNetwork, scorer: PlanScorer) -> None:
        self._network = network
        self._scorer = scorer
        self._known: dict[tuple[tuple[str, float], ...], UniformBaseline] = {}

    def baseline_for(self, projection: BudgetProjection) -> UniformBaseline:
        """Return the baseline of a budget, the same one each time."""
        key = tuple(sorted(projection.budget.shares.items()))
        if key not in self._known:
            self._known[key] = UniformBaseline(
                uniform_plan(self._network, projection), self._measure_loo_gain
            )
        return self._known[key]

    def _measure_loo_gain(self, uniform: Levels) -> NDArray[np.float64]:
        sites = len(self._network.space.sites)
        loss = self._scorer.score(uniform).loss
        if loss < MIN_REFERENCE_LOSS:
            return np.zeros(sites)
        spared = [self._scorer.score(self._without(uniform, site)).loss for site in range(sites)]
        return np.clip([1.0 - left / loss for left in spared], 0.0, 1.0)

    def _without(self, uniform: Levels, site: int) -> Levels:
        whole = self._network.space.neutral
        here = np.arange(len(self._network.space.sites)) == site
        return {name: np.where(here, whole[name], of_sites) for name, of_sites in uniform.items()}


class ExpectedLosses:
    """Losses expected of plans before they are applied, as shares of what the even plan loses.

    For a site it is its leave-one-out gain, times its loss as its techniques foresee it relative to that in
    the even plan; for a plan, the sum over its sites. How good that is: docs/decisions.md, D44.

    Args:
        network: the network that is compressed.
        baseline: the even plan that losses are shares of.
    """

    def __init__(self, network: PrunableNetwork, baseline: UniformBaseline) -> None:
        self._baseline = baseline
        self._network = network
        self._uniform = self._foreseen(baseline.uniform)

    def for_site(self, site: int, levels: Levels) -> float:
        """Return the share expected of the decision at one site of a plan."""
        return float(self._shares(levels)[site])

    def for_plan(self, levels: Levels) -> float:
        """Return the share expected of a plan."""
        return sum(self._shares(levels).tolist())

    def _shares(self, levels: Levels) -> NDArray[np.float64]:
        gain = np.maximum(MIN_LOO_GAIN, self._baseline.loo_gain)
        return gain * self._foreseen(levels) / np.maximum(self._uniform, MIN_SITE_LOSS)

    def _foreseen(self, levels: Levels) -> NDArray[np.float64]:
        return self._network.foreseen_losses(levels)
