"""Budgets, and what keeps every decision of an episode within them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pruning.cost import CostModel, Counts, Widths
from pruning.errors import BudgetError, ImpossibleBudgetError
from pruning.plan import kept_units

MEASURES: Mapping[str, Callable[[CostModel, Widths], int]] = {
    "macs": CostModel.macs,
    "params": CostModel.params,
}


@dataclass(frozen=True)
class Budget:
    """Shares of the whole dense network that may remain, by measure ("macs", "params")."""

    shares: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.shares:
            raise BudgetError("a budget needs at least one share, such as macs=0.5")
        for name, share in self.shares.items():
            if name not in MEASURES:
                near = difflib.get_close_matches(name, MEASURES, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise BudgetError(f"no budget named {name!r}.{hint} Known: {', '.join(MEASURES)}")
            if not 0.0 < share <= 1.0:  # a NaN fails every comparison
                raise BudgetError(
                    f"budget {name}: the share that may remain must lie in (0, 1], got {share!r}; half is 0.5"
                )


@dataclass(frozen=True)
class BudgetRange:
    """Budgets from the tightest to the loosest, for a policy that is to serve them all.

    They are GRID evenly spaced ones, not a continuum: what uniform pruning scores within each, which rewards
    are measured against, is then worked out once.
    """

    tightest: Budget
    loosest: Budget

    GRID: ClassVar[int] = 6

    def __post_init__(self) -> None:
        if self.tightest.shares.keys() != self.loosest.shares.keys():
            raise BudgetError(
                f"both ends of a range must name the same budgets, got {', '.join(self.tightest.shares)} "
                f"and {', '.join(self.loosest.shares)}"
            )
        for name, share in self.tightest.shares.items():
            if not share <= self.loosest.shares[name]:
                raise BudgetError(
                    f"budget {name}: a range goes from the smaller share to the larger, "
                    f"got {share:g}..{self.loosest.shares[name]:g}"
                )

    def at(self, position: float) -> Budget:
        """Return the budget at a position from 0, the tightest, to 1, the loosest."""
        shares = {}
        for name, low in self.tightest.shares.items():
            high = self.loosest.shares[name]
            even = round((1 - position) * low + position * high, 6)
            shares[name] = min(max(low, even), high)  # rounding may leave the range, and what is possible
        return Budget(shares)

    def draw(self, rng: np.random.Generator) -> Budget:
        """Return one of the budgets, each as likely as any other."""
        return self.at(int(rng.integers(self.GRID)) / (self.GRID - 1))


def parse_budget(texts: Iterable[str]) -> Budget | BudgetRange:
    """Read budgets such as "macs=0.5", or ranges of them such as "macs=0.3..0.8".

    Raises:
        BudgetError: a text is neither, a name is unknown or given twice, a share is out of range.
    """
    shares: dict[str, tuple[float, float]] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name in shares:
            raise BudgetError(f"budget {name} is given twice; give each once")
        low, dots, high = value.partition("..")
        try:
            shares[name] = float(low), float(high if dots else low)
        except ValueError:
            raise BudgetError(f"expected a budget such as macs=0.5 or macs=0.3..0.8, got {text!r}") from None
    tightest, loosest = (Budget({name: pair[end] for name, pair in shares.items()}) for end in (0, 1))
    return tightest if tightest == loosest else BudgetRange(tightest, loosest)


@dataclass(frozen=True)
class Limits:
    """How far the two ratios may go in one group."""

    static: float = 0.9
    runtime: float = 0.5

    def __post_init__(self) -> None:
        if not (0.0 <= self.static < 1.0 and 0.0 <= self.runtime < 1.0):
            raise BudgetError(
                f"the largest ratios must lie in [0, 1), got {self.static!r} and {self.runtime!r}"
            )


class BudgetKeeper:
    """Knows, at each step of an episode, which decisions can still meet the budget.

    Args:
        cost: prices of the network's plans.
        budget: what may remain.
        limits: the largest ratios.
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
        for name, share in smallest_shares(cost, limits, round_to=round_to).items():
            if name in budget.shares and share > budget.shares[name]:
                raise ImpossibleBudgetError(
                    f"budget {name}={budget.shares[name]:g} cannot be reached: the smallest is "
                    f"{rounded_up(share)}, with {limits.static:.0%} of every prunable group removed"
                )

    def _at(self, ratio: float) -> Counts:
        return even_counts(self.units, ratio, self._round_to)

    def fits_ratios(self, ratios: NDArray[np.float64]) -> bool:
        """Whether static ratios, [groups], rounded to units, meet the budget."""
        kept = np.array(
            [
                kept_units(int(units), ratio, round_to=self._round_to)
                for units, ratio in zip(self.units, ratios, strict=True)
            ],
            dtype=np.int64,
        )
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
            step: groups already decided.
            kept: their units, [step].
            executed: of those, per input, [step].
        """

        def fits(ratio: float) -> bool:
            later = self._at(ratio)[step:]
            return self._fits(np.concatenate([kept, later]), np.concatenate([executed, later]))

        if fits(0.0):
            return 0.0
        low, high = 0.0, self.limits.static
        for _ in range(24):  # to a ten-millionth: finer than one unit of any layer
            middle = (low + high) / 2
            low, high = (low, middle) if fits(middle) else (middle, high)
        return high

    def nearest(
        self,
        step: int,
        kept: Counts,
        executed: Counts,
        *,
        static: float,
        runtime: float,
        exhaust: bool = True,
    ) -> tuple[int, int]:
        """Return (kept, executed) units of this group: the wish, as far as the budget can be met exactly.

        A finished plan is never above the budget, and below it by at most one unit of its last group (by more
        only where the groups to come are too small to make up for one unit of this one).

        Args:
            step: number of the group; those before it are decided.
            kept: their units, [step].
            executed: of those, per input, [step].
            static: wished share of this group's units to remove.
            runtime: wished share of the survivors to skip; 0 where the group takes no gate.
            exhaust: whether the budget is to be used up; else a plan may end anywhere below it.
        """
        most_later, least_later = self.units[step + 1 :], self._smallest[step + 1 :]
        padded = (np.append(kept, 0), np.append(executed, 0))

        def fits(count: int, skipping: float, later: Counts) -> bool:
            return self._fits_with(step, *padded, (count, kept_units(count, skipping)), later)

        choices = self._choices(step)
        if not fits(choices[0], runtime, least_later):
            runtime = 0.0  # a gate costs something itself, and here it would break the budget
        wished = kept_units(int(self.units[step]), static, round_to=self._round_to)
        widest = _last(choices, lambda count: fits(count, runtime, least_later))
        # pruning more than this would leave the groups to come nothing to do and the budget not used up
        enough = _last(choices, lambda count: fits(count, runtime, most_later))
        narrowest = min(enough + 1, widest) if exhaust and fits(choices[0], runtime, most_later) else 0
        chosen = min(max(_nearest(choices, wished), narrowest), widest)
        count = choices[chosen]
        if exhaust and chosen == len(choices) - 1 and fits(count, runtime, most_later):
            return count, self._fewest_skipped(
                count, kept_units(count, runtime), fits, most_later, least_later
            )
        return count, kept_units(count, runtime)

    def follow(self, wish: Callable[[int, float], float]) -> Widths:
        """Return the units of a whole plan that comes as near as can be to wishes.

        Args:
            wish: the static ratio of a group, from its number and the even ratio that the budget then asks.
        """
        kept = executed = np.zeros(0, dtype=np.int64)
        for step in range(len(self.units)):
            static = wish(step, self.even_ratio(step, kept, executed))
            here = self.nearest(step, kept, executed, static=static, runtime=0.0)
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


def even_counts(units: Counts, ratio: float, round_to: int = 1) -> Counts:
    """Return the units that stay when the same static ratio is asked of every group."""
    return np.array([kept_units(int(count), ratio, round_to=round_to) for count in units], dtype=np.int64)


def smallest_shares(cost: CostModel, limits: Limits, *, round_to: int = 1) -> dict[str, float]:
    """Return, for each measure, the smallest share of the dense network that can remain."""
    counts = even_counts(cost.dense.kept, limits.static, round_to)
    return {
        name: price(cost, Widths(counts, counts)) / price(cost, cost.dense)
        for name, price in MEASURES.items()
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


def _nearest(choices: list[int], wished: int) -> int:
    return min(range(len(choices)), key=lambda position: abs(choices[position] - wished))
