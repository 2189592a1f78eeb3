"""Prices of single inputs, for which different units run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunegym.pruning.products import SumOfProducts

MAX_MACS = 2**53  # of one image; prices are exact below it


@dataclass(frozen=True)
class InputPrices:
    """Multiply-adds of single inputs, by how many units run at each gate of a network."""

    dense: int  # of the dense network
    fixed: int  # of layers that run alike for every input, gates included
    gated: SumOfProducts  # of layers that gates change, for counts of [gates]

    def macs(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the multiply-adds of each input, [inputs], from the units that run, [inputs, gates]."""
        return self.fixed + self.gated.evaluate_rows(counts)

    def gate_shares(self, units: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return each gate's share of all that they could save, [gates], from all their units, [gates]."""
        skipped = np.tile(units, (len(units), 1))
        np.fill_diagonal(skipped, 0)
        saved = self.gated(units) - self.gated.evaluate_rows(skipped)
        return saved / saved.sum()

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, fit for JSON."""
        table = {name: getattr(self.gated, name).tolist() for name in SumOfProducts.__dataclass_fields__}
        return {"dense": self.dense, "fixed": self.fixed, "gated": table}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> InputPrices:
        """Build prices from what `to_dict` returned.

        Raises:
            AttributeError, KeyError, TypeError, ValueError, OverflowError: it is no such data.
        """
        table = {name: np.array(data["gated"][name], dtype=np.float64) for name in data["gated"]}
        gated = SumOfProducts(**table)
        factors, rows, _ = gated.slopes.shape
        if gated.fixed.shape != (factors, rows) or gated.coefficient.shape != (rows,):
            raise ValueError("the prices of gates are of shapes that do not fit together")
        whole = [data["dense"], data["fixed"]]
        if not all(type(number) is int and 0 <= number < MAX_MACS for number in whole) or not whole[0]:
            raise ValueError(f"multiply-adds must be whole numbers, got {whole}")
        if not all((np.abs(values) < MAX_MACS).all() for values in table.values()):
            raise ValueError("the prices of gates must be finite numbers")
        return cls(data["dense"], data["fixed"], gated)
