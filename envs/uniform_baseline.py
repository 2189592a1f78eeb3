"""Uniform pruning within a budget: the baseline that rewards and expected losses refer to."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from prunegym.envs.allocation import uniform_plan
from prunegym.envs.budget_projection import BudgetProjection
from prunegym.envs.results import PlanScorer
from prunegym.envs.reward import MIN_REFERENCE_LOSS
from prunegym.pruning.cost import Counts, Widths
from prunegym.pruning.network import CURVE_RATIOS, PrunableNetwork

MIN_LOO_GAIN = 0.01  # what is measured below it is noise
MIN_READER_ERROR = 1e-3  # of a group's readers; multiples of less than that say nothing


class UniformBaseline:
    """The uniform plan within a budget, and the leave-one-out gain of each group.

    Args:
        uniform: unit counts of the uniform plan.
        measure: from these counts, measures the leave-one-out gains: [groups].
    """

    def __init__(self, uniform: Widths, measure: Callable[[Counts], NDArray[np.float64]]) -> None:
        self.uniform = uniform
        self._measure = measure

    @cached_property
    def loo_gain(self) -> NDArray[np.float64]:
        """Leave-one-out gain, [groups] in [0, 1].

        The fraction of the uniform plan's loss that disappears when only this group is left unpruned:
        1 - loss(uniform plan without this group) / loss(uniform plan). Computed when first asked for, at one
        evaluation for each group.
        """
        return self._measure(self.uniform.kept)


class UniformBaselines:
    """Measures uniform pruning once for each budget.

    Gains are measured by leaving each group out of the uniform plan, not by pruning it alone: see
    docs/decisions.md, D43.

    Args:
        network: the network that is pruned.
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

    def _measure_loo_gain(self, uniform: Counts) -> NDArray[np.float64]:
        whole = self._network.cost.dense.kept
        loss = self._loss(uniform)
        if loss < MIN_REFERENCE_LOSS:
            return np.zeros(len(uniform))
        spared = np.where(np.eye(len(uniform), dtype=bool), whole, uniform)
        return np.clip([1.0 - self._loss(kept) / loss for kept in spared], 0.0, 1.0)

    def _loss(self, kept: Counts) -> float:
        return self._scorer.score(Widths(kept, kept)).loss


class ExpectedLosses:
    """Losses expected of plans before they are applied, as shares of what the uniform plan loses.

    For a group it is its leave-one-out gain, times its readers' loss by the error curve relative to their
    loss in the uniform plan; for a plan, the sum over its groups. How good that is: docs/decisions.md, D44.

    Args:
        network: the network that is pruned.
        baseline: the uniform plan that losses are shares of.
    """

    def __init__(self, network: PrunableNetwork, baseline: UniformBaseline) -> None:
        self._baseline = baseline
        self._units = network.cost.dense.kept
        self._curves = [np.array([0.0, *curve, 1.0]) for curve in network.error_curves]
        self._ratios = np.array([0.0, *CURVE_RATIOS, 1.0])

    def for_group(self, group: int, units: int) -> float:
        """Return the share expected of leaving so many units to a group."""
        uniform = max(self._reader_loss(group, int(self._baseline.uniform.kept[group])), MIN_READER_ERROR)
        gain = max(MIN_LOO_GAIN, float(self._baseline.loo_gain[group]))
        return gain * self._reader_loss(group, units) / uniform

    def for_plan(self, units: Counts) -> float:
        """Return the share expected of a plan that leaves so many units of each group, [groups]."""
        return sum(self.for_group(group, int(count)) for group, count in enumerate(units))

    def _reader_loss(self, group: int, units: int) -> float:
        return float(np.interp(1.0 - units / self._units[group], self._ratios, self._curves[group]))
