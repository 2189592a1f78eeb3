"""What uniform pruning within a budget does: what rewards and decisions are measured against."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from prunegym.envs.allocation import uniform_plan
from prunegym.envs.budget_projection import BudgetProjection
from prunegym.envs.reward import MIN_REFERENCE_LOSS
from prunegym.envs.scoring import PlanScorer
from prunegym.pruning.cost import Counts, Widths
from prunegym.pruning.network import CURVE_RATIOS, PrunableNetwork

N_LOO_IMAGES = 128  # a group's share of a loss needs fewer than the loss itself
MIN_LOO_GAIN = 0.01  # what is measured below it is noise
MIN_READER_ERROR = (
    1e-3  # of a group's readers; where uniform pruning does less harm, no multiple of it says much
)


class UniformBaseline:
    """The uniform plan within a budget, and how much of its loss is each group's doing."""

    def __init__(self, uniform: Widths, measure: Callable[[Counts], NDArray[np.float64]]) -> None:
        self.uniform = uniform
        self._measure = measure

    @cached_property
    def loo_gain(self) -> NDArray[np.float64]:
        """The share of the loss, [groups] in [0, 1], that goes if this group alone stays whole.

        Worked out when first asked for, at an evaluation for each group.
        """
        return self._measure(self.uniform.kept)


class UniformBaselines:
    """Measures uniform pruning once for each budget.

    Each group is relieved from the uniform plan, since sensitivities of single groups of a whole network say
    little: on ResNet-56 those of half of each group add up to a twentieth of what pruning all of them costs.

    Args:
        network: what is pruned.
        scorer: of its plans; of images, N_LOO_IMAGES will do.
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
    """What plans are expected to lose before one was carried out, as shares of what uniform pruning loses.

    Of a group it is its loo_gain, times how much more its readers lose by the error curve than in the uniform
    plan. *Measured*, over 20 plans early in each of four searches on ResNet-20: rank correlation of the sum
    with the loss 0.2 to 0.8.
    """

    def __init__(self, network: PrunableNetwork) -> None:
        self._units = network.cost.dense.kept
        self._curves = [np.array([0.0, *curve, 1.0]) for curve in network.error_curves]
        self._ratios = np.array([0.0, *CURVE_RATIOS, 1.0])

    def for_group(self, group: int, units: int, baseline: UniformBaseline) -> float:
        """Return the share expected of a group of which so many units are left."""
        here = self._loss(group, units)
        uniform = max(self._loss(group, int(baseline.uniform.kept[group])), MIN_READER_ERROR)
        return max(MIN_LOO_GAIN, float(baseline.loo_gain[group])) * here / uniform

    def for_plan(self, units: Counts, baseline: UniformBaseline) -> float:
        """Return the share expected of a plan that leaves so many units of each group, [groups]."""
        return sum(self.for_group(group, int(left), baseline) for group, left in enumerate(units))

    def _loss(self, group: int, units: int) -> float:
        return float(np.interp(1.0 - units / self._units[group], self._ratios, self._curves[group]))
