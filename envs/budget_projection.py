"""The projection of decisions onto what the budget allows."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from prunegym.envs.budget import MEASURES, Budget, Limits, priced
from prunegym.pruning.cost import CostModel, Counts, Widths
from prunegym.pruning.errors import ImpossibleBudgetError
from prunegym.pruning.plan import kept_units

Ratios: TypeAlias = NDArray[np.float64]  # [groups], static


class BudgetProjection:
    """Projects each decision of an episode onto the decisions from which the budget can still be met.

    Args:
        cost: prices the network's plans.
        budget: shares of the dense network that may remain.
        limits: the largest ratios of a group.
        round_to: units are kept in multiples of this.

    Raises:
        ImpossibleBudgetError: even with every group at its largest static ratio a budget is not met.
    """

    def __init__(self, cost: CostModel, budget: Budget, limits: Limits, *, round_to: int = 1) -> None:
        self.budget = budget
        self.limits = limits
        self._cost = cost
        self._round_to = round_to
        self.units = cost.dense.kept
        self._ceilings = {  # whole numbers; the margin undoes the rounding of a share that was measured
            name: math.floor(share * MEASURES[name](cost, cost.dense) + 1e-6)
            for name, share in budget.shares.items()
        }
        self._smallest = self._at(limits.static)
        self._even_ratios = _even_ratios(self.units, limits.static)
        for name, share in smallest_shares(cost, limits, round_to=round_to).items():
            if name in budget.shares and share > budget.shares[name]:
                raise ImpossibleBudgetError(
                    f"budget {name}={budget.shares[name]:g} cannot be reached: the smallest is "
                    f"{rounded_up(share)}, with {limits.static:.0%} of every prunable group removed"
                )

    def _at(self, ratios: Ratios | float) -> Counts:
        return kept_counts(self.units, ratios, self._round_to)

    def fits_ratios(self, ratios: Ratios) -> bool:
        """Whether static ratios, rounded to units, meet the budget."""
        kept = self._at(ratios)
        return self._fits(kept, kept)

    def _fits(self, kept: Counts, executed: Counts) -> bool:
        widths = Widths(kept, executed)
        return all(MEASURES[name](self._cost, widths) <= most for name, most in self._ceilings.items())

    def _fits_with(
        self, step: int, kept: Counts, executed: Counts, here: tuple[int, int], later: Counts
    ) -> bool:
        """Whether the decisions so far, `here` (kept, executed) at `step` and `later` fit together."""
        all_kept, all_executed = np.concatenate([kept, later]), np.concatenate([executed, later])
        all_kept[step], all_executed[step] = here
        return self._fits(all_kept, all_executed)

    def even_ratio(self, step: int, kept: Counts, executed: Counts) -> float:
        """Return the smallest even static ratio, for this and all later groups, that meets the budget.

        Args:
            step: number of groups decided.
            kept: their units, [step].
            executed: the units of those that run per input, [step].
        """

        def fits(ratio: float) -> bool:
            later = kept_counts(self.units[step:], ratio, self._round_to)
            return self._fits(np.concatenate([kept, later]), np.concatenate([executed, later]))

        found = bisect_left(self._even_ratios, True, key=fits)
        return float(self._even_ratios[min(found, len(self._even_ratios) - 1)])

    def project(
        self,
        step: int,
        kept: Counts,
        executed: Counts,
        *,
        static: float,
        runtime: float,
        exhaust: bool = True,
    ) -> tuple[int, int]:
        """Return the (kept, executed) units nearest to the request from which the budget can still be met.

        A finished plan is never above the budget, and below it by at most one unit of its last group (by more
        only where the groups to come are too small to make up for one unit of this one).

        Args:
            step: index of the group; those before it are decided.
            kept: their units, [step].
            executed: the units of those that run per input, [step].
            static: requested share of this group's units to remove.
            runtime: requested share of the survivors to skip; 0 where the group takes no gate.
            exhaust: whether the budget is to be used up; else a plan may end anywhere below it.
        """
        most_later, least_later = self.units[step + 1 :], self._smallest[step + 1 :]
        padded = (np.append(kept, 0), np.append(executed, 0))

        def fits(count: int, skipping: float, later: Counts) -> bool:
            return self._fits_with(step, *padded, (count, kept_units(count, skipping)), later)

        choices = self._choices(step)
        if not fits(choices[0], runtime, least_later):
            runtime = 0.0  # a gate costs something itself, and here it would break the budget
        target = kept_units(int(self.units[step]), static, round_to=self._round_to)
        widest = _last(choices, lambda count: fits(count, runtime, least_later))
        # pruning more than this would leave the groups to come nothing to do and the budget not used up
        enough = _last(choices, lambda count: fits(count, runtime, most_later))
        narrowest = min(enough + 1, widest) if exhaust and fits(choices[0], runtime, most_later) else 0
        chosen = min(max(_nearest(choices, target), narrowest), widest)
        count = choices[chosen]
        if exhaust and chosen == len(choices) - 1 and fits(count, runtime, most_later):
            return count, self._fewest_skipped(
                count, kept_units(count, runtime), fits, most_later, least_later
            )
        return count, kept_units(count, runtime)

    def complete(self, target_ratio: Callable[[int, float], float]) -> Widths:
        """Return the units of a whole plan, as near as the budget allows to a target ratio for each group.

        Args:
            target_ratio: (step, even ratio within what is left of the budget) -> static ratio of that group.
        """
        kept = executed = np.zeros(0, dtype=np.int64)
        for step in range(len(self.units)):
            static = target_ratio(step, self.even_ratio(step, kept, executed))
            here = self.project(step, kept, executed, static=static, runtime=0.0)
            kept, executed = np.append(kept, here[0]), np.append(executed, here[1])
        return Widths(kept, executed)

    def _choices(self, step: int) -> list[int]:
        """Return the unit counts that this group may keep, ascending."""
        units = int(self.units[step])
        counts = range(int(self._smallest[step]), units + 1)
        return [count for count in counts if count % self._round_to == 0 or count == units]

    def _fewest_skipped(
        self,
        count: int,
        executed: int,
        fits: Callable[[int, float, Counts], bool],
        most: Counts,
        least: Counts,
    ) -> int:
        """Return the executed units that use the budget up where even the whole group undershoots it."""

        def meets(run: int, later: Counts) -> bool:
            return fits(count, 1.0 - run / count, later)

        runs = list(range(executed, count + 1))
        enough = _last(runs, lambda run: meets(run, most))
        fuller = runs[min(enough + 1, len(runs) - 1)]
        return fuller if meets(fuller, least) else runs[enough]


def kept_counts(units: Counts, ratios: Ratios | float, round_to: int = 1) -> Counts:
    """Return the units of each group that stay, at a static ratio for each or one for all."""
    kept = np.maximum(1, np.floor(units * (1.0 - ratios) + 0.5).astype(np.int64))  # see `kept_units`
    if round_to > 1:
        rounded = np.maximum(round_to, np.floor(kept / round_to + 0.5).astype(np.int64) * round_to)
        kept = np.where(kept < units, rounded, kept)
    return np.minimum(units, kept)


def _even_ratios(units: Counts, most: float) -> Ratios:
    """Return 0, `most`, and every ratio between from which on some group keeps one unit fewer; ascending."""
    # kept_units goes down just above (kept - 0.5) / count
    falls = [1.0 - (np.arange(1, count + 1) - 0.5) / count + 1e-9 for count in set(units.tolist())]
    ratios = np.unique(np.concatenate([[0.0, most], *falls]))
    return ratios[ratios <= most]


def smallest_shares(cost: CostModel, limits: Limits, *, round_to: int = 1) -> dict[str, float]:
    """Return, for each measure that has a price, the smallest share of the dense network that can remain."""
    counts = kept_counts(cost.dense.kept, limits.static, round_to)
    return {
        name: price(cost, Widths(counts, counts)) / price(cost, cost.dense)
        for name, price in priced(cost).items()
    }


def rounded_up(share: float) -> str:
    """Return a share with four decimals, so that the smallest reachable share can be asked for as shown."""
    return f"{math.ceil(share * 1e4) / 1e4:.4f}"


def _last(choices: list[int], fits: Callable[[int], bool]) -> int:
    """Return the position of the last choice that fits, the first if none does: fitting is monotone."""
    low, high = 0, len(choices) - 1
    while low < high:
        middle = math.ceil((low + high) / 2)
        low, high = (middle, high) if fits(choices[middle]) else (low, middle - 1)
    return low


def _nearest(choices: list[int], target: int) -> int:
    return min(range(len(choices)), key=lambda position: abs(choices[position] - target))
