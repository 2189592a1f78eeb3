"""Budgets, ranges of them, and limits: what is asked of a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from prunegym.pruning.cost import CostModel, Widths
from prunegym.pruning.errors import BudgetError
from prunegym.pruning.registry import nearest_hint

MEASURES: Mapping[str, Callable[[CostModel, Widths], int]] = {
    "macs": CostModel.macs,
    "params": CostModel.params,
    "latency": CostModel.latency,
}


def priced(cost: CostModel) -> dict[str, Callable[[CostModel, Widths], int]]:
    """Return the measures that have a price: latency does once there is a table."""
    return {name: price for name, price in MEASURES.items() if name != "latency" or cost.prices_latency}


@dataclass(frozen=True)
class Budget:
    """Shares of the whole dense network that may remain, by measure ("macs", "params", "latency")."""

    shares: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.shares:
            raise BudgetError("a budget needs at least one share, such as macs=0.5")
        for name, share in self.shares.items():
            if name not in MEASURES:
                hint = nearest_hint(name, MEASURES)
                raise BudgetError(f"no budget named {name!r}.{hint} Known: {', '.join(MEASURES)}")
            if not 0.0 < share <= 1.0:  # a NaN fails every comparison
                raise BudgetError(
                    f"budget {name}: the share that may remain must lie in (0, 1], got {share!r}; half is 0.5"
                )

    def __str__(self) -> str:
        return " ".join(f"{name}={share:g}" for name, share in self.shares.items())


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

    def __str__(self) -> str:
        names = self.tightest.shares
        return " ".join(f"{name}={names[name]:g}..{self.loosest.shares[name]:g}" for name in names)

    def budget_at(self, position: float) -> Budget:
        """Return the budget at a position from 0, the tightest, to 1, the loosest."""
        shares = {}
        for name, low in self.tightest.shares.items():
            high = self.loosest.shares[name]
            even = round((1 - position) * low + position * high, 6)
            shares[name] = min(max(low, even), high)  # rounding may leave the range, and what is possible
        return Budget(shares)

    def draw(self, rng: np.random.Generator) -> Budget:
        """Return one of the budgets, each as likely as any other."""
        return self.budget_at(int(rng.integers(self.GRID)) / (self.GRID - 1))


def leading_measure(budget: Budget | BudgetRange) -> str:
    """Return the measure by which an agent sees what groups cost: latency where the budget names it."""
    shares = budget.shares if isinstance(budget, Budget) else budget.tightest.shares
    return "latency" if "latency" in shares else "macs"


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
