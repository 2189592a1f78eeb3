"""Measures of what a compressed network costs. A registry: each can be a budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from prunegym.pruning.errors import BudgetError
from prunegym.pruning.products import Counts, Quantities
from prunegym.pruning.registry import Registry


class Prices(Protocol):
    """What the price of a measure is worked out from, on one network."""

    latency: Callable[[Counts, Counts], int] | None
    """Nanoseconds, from the units kept of each group and 1 for each layer that is there; None: no table."""

    def total(self, measure: str, quantities: Quantities) -> int:
        """Return the sum of products of a measure whose terms techniques give."""


@dataclass(frozen=True)
class Measure:
    """What a plan costs by one measure, as a whole number."""

    unit: str  # for tables: "MACs", "bytes"
    price: Callable[[Prices, Quantities], int]
    lacking: Callable[[Prices], str | None]  # why there is no price, and how to get one; None: there is one
    needs_table: bool = False  # whether its price comes from a latency table
    unpriced: tuple[str, ...] = ()  # techniques that it cannot price; a budget on it turns them off


MEASURES: Registry[Measure] = Registry("measure")


def _tabulated(name: str, unit: str) -> None:
    MEASURES.register(name)(
        Measure(unit, lambda cost, quantities: cost.total(name, quantities), lambda cost: None)
    )


_tabulated("macs", "executed multiply-adds for an image, those of gates included")
_tabulated("params", "parameters, those of gates included")
_tabulated("bytes", "bytes of all tensors that are saved")
_tabulated("bops", "sum over executed multiply-adds of weight bits times activation bits")


def _nanoseconds(cost: Prices, quantities: Quantities) -> int:
    if cost.latency is None:
        raise BudgetError(f"latency has no price: {_no_table(cost)}")
    return cost.latency(quantities["kept"], quantities["present"])


def _no_table(cost: Prices) -> str | None:
    if cost.latency is not None:
        return None
    return (
        "measure the network's layers first, with `prunegym latency` or "
        "PrunableNetwork.enable_latency_prices_"
    )


MEASURES.register("latency")(
    Measure(
        "nanoseconds for an image by this device's table",
        _nanoseconds,
        _no_table,
        needs_table=True,
        unpriced=("gates",),  # no table times them
    )
)
