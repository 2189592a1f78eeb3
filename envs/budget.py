"""Budgets, ranges of them, and limits: what is asked of a plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from prunegym.pruning.errors import BudgetError, PlanError
from prunegym.pruning.measures import MEASURES
from prunegym.pruning.plan import Amount
from prunegym.pruning.registry import nearest_hint
from prunegym.pruning.technique import Technique
from prunegym.pruning.techniques import TECHNIQUES


@dataclass(frozen=True)
class Budget:
    """Shares of the whole dense network that may remain, by measure: a name in MEASURES, such as "macs"."""

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


def measures_of(budget: Budget | BudgetRange) -> tuple[str, ...]:
    """Return the measures that a budget, or each budget of a range, names."""
    return tuple(budget.shares if isinstance(budget, Budget) else budget.tightest.shares)


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
    """How far techniques may go at one site: key -> amount; a technique that is not named has its own limit.

    Example:
        >>> Limits({"static_ratio": 0.8}).amounts
        {'static_ratio': 0.8}
    """

    amounts: Mapping[str, Amount] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {kind.key: kind for kind in TECHNIQUES.values()}
        for key, amount in self.amounts.items():
            if key not in known:
                hint = nearest_hint(key, known)
                raise BudgetError(f"no technique decides {key!r}.{hint} Known: {', '.join(known)}")
            try:
                known[key].check(amount, "the limit")
            except PlanError as error:
                raise BudgetError(str(error)) from error

    def of(self, technique: Technique | type[Technique]) -> Amount:
        """Return the farthest amount of a technique."""
        return self.amounts.get(technique.key, technique.limit)

    def without(self, names: Iterable[str]) -> Limits:
        """Return limits within which these techniques, by name, compress nothing."""
        off = {TECHNIQUES[name].key: TECHNIQUES[name].neutral for name in names}
        return Limits({**self.amounts, **off})
