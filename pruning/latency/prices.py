"""The latency of any plan, by a table and arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prunegym.pruning.errors import BudgetError
from prunegym.pruning.graph import ChannelGraph
from prunegym.pruning.latency.records import LatencyTable, LayerTimes
from prunegym.pruning.products import Axes

NANOSECONDS = 1_000_000  # in a millisecond

Integers = NDArray[np.int64]


class LayerSums:
    """Sums over a network's layers of times and of values written, at any unit counts.

    Times are interpolated between the widths of a table in whole nanoseconds and rounded down once: a wider
    layer is then never cheaper, not by a hair, which the bisections of a budget rely on.

    Args:
        graph: the network's groups.
        layers: the times of all its layers.
    """

    def __init__(self, graph: ChannelGraph, layers: Sequence[LayerTimes]) -> None:
        axes = Axes(graph)
        rows = [(name, times) for times in layers for name in times.layers]  # one for each call
        inputs = [(name, "in", times.inputs) for name, times in rows]
        outputs = [(name, "out", times.outputs) for name, times in rows]
        self._widths = _Widths(axes, [*inputs, *outputs])
        self._tables = _Tables([times for _, times in rows])
        self._values = _values(graph, axes)
        order = {name: index for index, name in enumerate(graph.layers)}
        self._layers = np.array([order[name] for name, _ in rows])  # of each row

    def nanoseconds(self, counts: Integers, present: Integers | None = None) -> int:
        """Return the time of all layers together.

        Args:
            counts: units of each prunable group, [groups].
            present: 1 for each layer that is there, else 0: [layers]; None: all are.
        """
        low, part, gap = self._widths.places(counts).reshape(3, 2, -1)
        rest = gap - part
        weights = np.stack([rest[0] * rest[1], rest[0] * part[1], part[0] * rest[1], part[0] * part[1]])
        times = (self._tables.corners(low[0], low[1]) * weights).sum(0) // (gap[0] * gap[1])
        return int(times.sum() if present is None else times @ present[self._layers])

    def values(self, counts: Integers, present: Integers | None = None) -> int:
        """Return the number of values that the layers write for one image; see `nanoseconds`."""
        fixed, per_unit = self._values
        written = fixed + per_unit @ counts
        return int(written.sum() if present is None else written @ present)


class _Widths:
    """Widths of layers' axes, and where these lie on the grids that a table was measured at.

    Args:
        axes: positions per unit of each axis.
        grids: for each row its layer, "in" or "out", and the widths that were timed.
    """

    def __init__(self, axes: Axes, grids: Sequence[tuple[str, str, Sequence[int]]]) -> None:
        widths = [
            axes.positions(name, axis, grid[-1]) if len(grid) > 1 else (float(grid[-1]), axes.none())
            for name, axis, grid in grids
        ]
        self._always = np.array([fixed for fixed, _ in widths]).astype(np.int64)  # [rows]
        self._per_unit = np.stack([units for _, units in widths]).astype(np.int64)  # [rows, groups]
        intervals = [_intervals(grid) for _, _, grid in grids]
        self._intervals = np.concatenate(intervals, axis=1)  # those of all grids, one after the other
        self._starts = _starts([part.shape[1] for part in intervals])

    def places(self, counts: Integers) -> Integers:
        """Return, for each row, the interval, how far into it, and how long that is: [3, rows]."""
        return self._intervals[:, self._starts + self._always + self._per_unit @ counts]


class _Tables:
    """The times of all rows, in nanoseconds, as one array.

    Args:
        rows: the times of each row.
    """

    def __init__(self, rows: Sequence[LayerTimes]) -> None:
        tables = [np.rint(np.array(times.milliseconds) * NANOSECONDS).astype(np.int64) for times in rows]
        self._columns = columns = np.array([table.shape[1] for table in tables])
        self._starts = _starts([table.size for table in tables])
        self._corners = np.stack([0 * columns, 0 * columns + 1, columns, columns + 1])  # of a cell
        beyond = np.zeros(
            int(columns.max()) + 2, dtype=np.int64
        )  # the last corners may lie here, at weight 0
        self._times = np.concatenate([*(table.ravel() for table in tables), beyond])

    def corners(self, row: Integers, column: Integers) -> Integers:
        """Return the times at the four corners of one cell of each table: [4, rows]."""
        return self._times[self._starts + row * self._columns + column + self._corners]


def _intervals(grid: Sequence[int]) -> Integers:
    """Return, for each width from 0 on, where it lies: [3, widths].

    The number of the grid's interval, how far into it, and how long that is; what is narrower than the grid
    counts as its beginning.
    """
    widths = np.arange(grid[-1] + 1)
    if len(grid) == 1:
        return np.stack([0 * widths, 0 * widths, 0 * widths + 1])
    places = np.array(grid, dtype=np.int64)
    low = np.clip(np.searchsorted(places, widths, side="right") - 1, 0, len(grid) - 2)
    return np.stack([low, np.maximum(widths - places[low], 0), places[low + 1] - places[low]])


def _starts(sizes: Sequence[int]) -> Integers:
    """Return where each of some arrays begins once they are joined."""
    return np.cumsum([0, *sizes[:-1]], dtype=np.int64)


def _values(graph: ChannelGraph, axes: Axes) -> tuple[Integers, Integers]:
    """Return the values each layer writes whatever the counts, [layers], and per unit, [layers, groups]."""
    written = [(layer, axes.positions(layer.name, "out", layer.cout)) for layer in graph.layers.values()]
    fixed = np.array([layer.positions * always for layer, (always, _) in written])
    per_unit = np.stack([layer.positions * units for layer, (_, units) in written])
    return fixed.astype(np.int64), per_unit.astype(np.int64)


class LatencyPrices:
    """Predicts the latency of plans on one network.

    Args:
        graph: the network's groups, patterns applied.
        table: the latency table of the same network.

    Raises:
        BudgetError: the table is of another network.
    """

    def __init__(self, graph: ChannelGraph, table: LatencyTable) -> None:
        timed = {name: (one.inputs[-1], one.outputs[-1]) for one in table.layers for name in one.layers}
        if timed != {name: (layer.cin, layer.cout) for name, layer in graph.layers.items()}:
            raise BudgetError("the latency table is of another network; measure that of this one")
        self._whole = table.whole
        self._sums = LayerSums(graph, table.layers)

    def __call__(self, counts: Integers, present: Integers | None = None) -> int:
        """Return nanoseconds for one image, rounded down; see `LayerSums.nanoseconds`."""
        layers = self._sums.nanoseconds(counts, present) / NANOSECONDS
        return math.floor(NANOSECONDS * self._whole(layers, self._sums.values(counts, present)))
