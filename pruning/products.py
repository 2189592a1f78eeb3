"""Sums of products of affine factors, in which prices of plans are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from prunegym.pruning.graph import ChannelGraph

FLOAT_BITS = 32  # of a weight, and of an activation, as the measure `bops` counts those not quantised

Array: TypeAlias = NDArray[np.float64]
Counts: TypeAlias = NDArray[np.int64]  # whole numbers, so that plans and prices are exact
Quantities: TypeAlias = Mapping[str, Counts]  # what prices depend on, by name: a vector each


@dataclass(frozen=True, eq=False)
class Factor:
    """The number fixed + slopes . q, for a quantity q of a plan, such as the units kept of each group."""

    quantity: str
    fixed: float
    slopes: Array  # one for each entry of the quantity


@dataclass(frozen=True, eq=False)
class Term:
    """The product of a coefficient and affine factors: the price of one tensor, or of one layer's work."""

    owner: str  # qualified name of the module or the bare parameter that is priced
    part: str  # "weight", "bias", "buffer", "parameter", "gate" or "work", the multiply-adds
    coefficient: float
    factors: tuple[Factor, ...] = ()

    def times(self, coefficient: float = 1.0, *factors: Factor) -> Term:
        """Return this term multiplied by a number and further factors."""
        return replace(self, coefficient=self.coefficient * coefficient, factors=(*self.factors, *factors))


@dataclass(frozen=True, eq=False)
class SumOfProducts:
    """Sum over rows of coefficient * product over k of (fixed_k + slopes_k . x), for a vector x: [columns].

    Exact for whole numbers below 2^53.
    """

    coefficient: Array  # [rows]
    fixed: Array  # [factors, rows]
    slopes: Array  # [factors, rows, columns]

    def __call__(self, x: NDArray[np.int64]) -> float:
        """Return the sum at x: [columns]."""
        return float((self.fixed + self.slopes @ x).prod(0) @ self.coefficient)

    def evaluate_rows(self, xs: NDArray[np.int64]) -> Array:
        """Return the sum at each of several vectors: [count], from [count, columns]."""
        values = self.fixed[:, None] + xs @ self.slopes.transpose(0, 2, 1)  # [factors, count, rows]
        return values.prod(0) @ self.coefficient

    def restricted_to(self, some: NDArray[np.bool_], x: NDArray[np.int64]) -> SumOfProducts:
        """Return the sum as one over some of the columns; the others are fixed at their values in x."""
        fixed = self.fixed + self.slopes @ np.where(some, 0, x)
        return SumOfProducts(self.coefficient, fixed, self.slopes[:, :, some])

    def rows(self, which: NDArray[np.bool_]) -> SumOfProducts:
        """Return the sum over some of the rows, [rows]."""
        return SumOfProducts(self.coefficient[which], self.fixed[:, which], self.slopes[:, which])

    def folded(self) -> SumOfProducts:
        """Return the same sum with factors that do not vary multiplied into the coefficient."""
        varies = (self.slopes != 0).any(axis=2)  # [factors, rows]
        constant = np.where(varies, 1.0, self.fixed).prod(0)
        order = np.argsort(~varies, axis=0, kind="stable")[: max(1, int(varies.sum(0).max(initial=0)))]
        fixed = np.where(varies, self.fixed, 1.0)
        return SumOfProducts(
            self.coefficient * constant,
            np.take_along_axis(fixed, order, axis=0),
            np.take_along_axis(self.slopes, order[:, :, None], axis=0),
        )


def sum_of(terms: Iterable[Term], columns: Mapping[str, slice]) -> SumOfProducts:
    """Return the sum of terms, as a function of the vector in which each quantity has its `columns`."""
    size = max((part.stop for part in columns.values()), default=0)
    merged: dict[tuple[bytes, ...], tuple[float, list[tuple[float, Array]]]] = {}
    for term in terms:
        rows = []
        for factor in term.factors:
            slopes = np.zeros(size)
            slopes[columns[factor.quantity]] = factor.slopes
            rows.append((factor.fixed, slopes))
        key = tuple(np.append(slopes, fixed).tobytes() for fixed, slopes in rows)
        coefficient, _ = merged.get(key, (0.0, rows))
        merged[key] = coefficient + term.coefficient, rows
    factors = max((len(rows) for _, rows in merged.values()), default=1) or 1
    fixed, slopes = np.ones((factors, len(merged))), np.zeros((factors, len(merged), size))
    for index, (_, rows) in enumerate(merged.values()):
        for k, (constant, slope) in enumerate(rows):
            fixed[k, index], slopes[k, index] = constant, slope
    return SumOfProducts(
        np.array([coefficient for coefficient, _ in merged.values()]), fixed, slopes
    ).folded()


class Axes:
    """The number of positions of each axis that belong to a unit of each group, and those in no group."""

    def __init__(self, graph: ChannelGraph) -> None:
        self._groups = graph.prunable
        self._per_unit: dict[tuple[str, str], Array] = {}
        for index, group in enumerate(self._groups):
            written = (*group.writers, *group.carriers)
            roles = {"out": written, "in": group.readers, "parameter": group.parameters}
            for axis, members in roles.items():
                for member in members:
                    counts = self._per_unit.setdefault((member.owner, axis), np.zeros(len(self._groups)))
                    counts[index] += len(member.channels[0])

    def none(self) -> Array:
        """Return no position per unit, for an axis that belongs to no group."""
        return np.zeros(len(self._groups))

    def positions(self, owner: str, axis: str, size: int) -> tuple[float, Array]:
        """Return (positions in no group, positions per unit of each group)."""
        per_unit = self._per_unit.get((owner, axis), np.zeros(len(self._groups)))
        units = np.array([group.units for group in self._groups])
        return size - float(per_unit @ units), per_unit
