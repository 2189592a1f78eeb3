"""Prices of plans: multiply-adds and parameters by arithmetic, without surgery; latency by a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from prunegym.pruning.errors import BudgetError, PlanError
from prunegym.pruning.graph import ChannelGraph, LayerShape
from prunegym.pruning.plan import LayerDecision, PruningPlan, kept_units
from prunegym.pruning.registry import unknown_name
from prunegym.pruning.surgery.cutting import TRANSPOSED, bare_tensor

Counts = NDArray[np.int64]  # one per prunable group


@dataclass(frozen=True)
class Widths:
    """Units per prunable group, in the graph's order: `kept` after the cut, of those `executed` per input."""

    kept: Counts
    executed: Counts


def plan_widths(graph: ChannelGraph, plan: PruningPlan, *, round_to: int = 1) -> Widths:
    """Return the unit counts of a plan.

    Raises:
        PlanError: the plan names a frozen group, or asks for a gate where none can be.
        UnknownNameError: it names a group that the network does not have.
    """
    _check_names(graph, plan)
    kept = [kept_units(g.units, plan[g.name].static_ratio, round_to=round_to) for g in graph.prunable]
    executed = [
        kept_units(count, plan[group.name].runtime_ratio)
        for group, count in zip(graph.prunable, kept, strict=True)
    ]
    return Widths(np.array(kept, dtype=np.int64), np.array(executed, dtype=np.int64))


def widths_plan(graph: ChannelGraph, widths: Widths) -> PruningPlan:
    """Return the plan with these unit counts; the inverse of `plan_widths`."""
    counts = zip(graph.prunable, widths.kept.tolist(), widths.executed.tolist(), strict=True)
    return PruningPlan(
        {group.name: LayerDecision(1 - kept / group.units, 1 - runs / kept) for group, kept, runs in counts}
    )


def _check_names(graph: ChannelGraph, plan: PruningPlan) -> None:
    groups = {group.name: group for group in graph.groups}
    for name, decision in plan.decisions.items():
        if name not in groups:
            raise unknown_name("channel group", name, groups)
        group = groups[name]
        if group.frozen and (decision.static_ratio or decision.runtime_ratio):
            raise PlanError(f"group {name!r} is frozen ({group.frozen}); take it out of the plan")
        if group.ungated and decision.runtime_ratio:
            raise PlanError(
                f"group {name!r} takes no runtime gate ({group.ungated}); set its runtime_ratio to 0"
            )


@dataclass(frozen=True)
class Bilinear:
    """Sum over rows of coefficient * (in0 + in1 . n) * (out0 + out1 . n), for unit counts n: [groups]."""

    coefficient: NDArray[np.float64]  # [rows]
    in0: NDArray[np.float64]  # [rows]
    in1: NDArray[np.float64]  # [rows, groups]
    out0: NDArray[np.float64]
    out1: NDArray[np.float64]

    def __call__(self, counts: Counts) -> float:
        """Return the sum for these unit counts."""
        return float(self.evaluate_rows(counts[None])[0])

    def evaluate_rows(self, counts: Counts) -> NDArray[np.float64]:
        """Return the sum for each row of unit counts: [images], from [images, groups]."""
        ins, outs = self.in0 + counts @ self.in1.T, self.out0 + counts @ self.out1.T
        return (ins * outs) @ self.coefficient

    def restricted_to(self, some: NDArray[np.bool_], counts: Counts) -> Bilinear:
        """Return the sum as one over the counts of some groups, [groups]; those of the others are fixed."""
        others = np.where(some, 0, counts)
        return Bilinear(
            self.coefficient,
            self.in0 + self.in1 @ others,
            self.in1[:, some],
            self.out0 + self.out1 @ others,
            self.out1[:, some],
        )

    def rows(self, which: NDArray[np.bool_]) -> Bilinear:
        """Return the sum over some of the rows, [rows]."""
        parts = (self.coefficient, self.in0, self.in1, self.out0, self.out1)
        return Bilinear(*(part[which] for part in parts))


class Axes:
    """The number of positions of each axis that belong to a unit of each group, and those in no group."""

    def __init__(self, graph: ChannelGraph) -> None:
        self._groups = graph.prunable
        self._per_unit: dict[tuple[str, str], NDArray[np.float64]] = {}
        for index, group in enumerate(self._groups):
            written = (*group.writers, *group.carriers)
            roles = {"out": written, "in": group.readers, "parameter": group.parameters}
            for axis, members in roles.items():
                for member in members:
                    counts = self._per_unit.setdefault((member.owner, axis), np.zeros(len(self._groups)))
                    counts[index] += len(member.channels[0])

    def positions(self, owner: str, axis: str, size: int) -> tuple[float, NDArray[np.float64]]:
        """Return (positions in no group, positions per unit of each group)."""
        per_unit = self._per_unit.get((owner, axis), np.zeros(len(self._groups)))
        units = np.array([group.units for group in self._groups])
        return size - float(per_unit @ units), per_unit

    def constant(self) -> tuple[float, NDArray[np.float64]]:
        """Return the factor 1, for a price that does not depend on an axis."""
        return 1.0, np.zeros(len(self._groups))


Row = tuple[float, tuple[float, NDArray[np.float64]], tuple[float, NDArray[np.float64]]]


def _bilinear(rows: list[Row], groups: int) -> Bilinear:
    blank = np.zeros((0, groups))
    return Bilinear(
        coefficient=np.array([row[0] for row in rows]),
        in0=np.array([row[1][0] for row in rows]),
        in1=np.stack([row[1][1] for row in rows]) if rows else blank,
        out0=np.array([row[2][0] for row in rows]),
        out1=np.stack([row[2][1] for row in rows]) if rows else blank,
    )


class CostModel:
    """Prices of plans on one network, exactly as they are counted on the network once it is cut.

    Args:
        graph: the network's groups.
        model: the dense network.
        shifts_bias: whether the compensation moves a removed mean into a bias (`Compensation.shifts_bias`):
            a reader that has neither a bias nor a BatchNorm to absorb it then gains one.
        latency: unit counts [groups] -> nanoseconds; without it latency has no price.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        model: nn.Module,
        *,
        shifts_bias: bool = False,
        latency: Callable[[Counts], int] | None = None,
    ) -> None:
        self.groups = graph.prunable
        self._latency = latency
        axes = Axes(graph)
        self._macs = _bilinear(_mac_rows(graph, axes), len(self.groups))
        bare = {member.owner: member.axis for group in graph.groups for member in group.parameters}
        parameters = [_parameter_row(graph, model, axes, name, bare) for name, _ in model.named_parameters()]
        self._params = _bilinear(parameters, len(self.groups))
        self._filled = np.array(
            [sum(len(reader.channels[0]) for reader in group.readers) for group in self.groups],
            dtype=np.int64,
        )  # input channels of the readers, for each unit
        # a gate reads the inputs of its group's writer
        writers = [graph.layers[group.layers[0]] for group in self.groups]
        inputs = [(1.0, axes.positions(each.name, "in", each.cin), axes.constant()) for each in writers]
        self._gate_inputs = _bilinear(inputs, len(self.groups))
        self._new_biases = _new_biases(graph, model, axes) if shifts_bias else []
        self._units = np.array([group.units for group in self.groups], dtype=np.int64)

    @property
    def prices_latency(self) -> bool:
        """True if latency has a price."""
        return self._latency is not None

    @property
    def dense(self) -> Widths:
        """The widths of the network before it is pruned."""
        return Widths(self._units, self._units)

    def macs(self, widths: Widths) -> int:
        """Executed multiply-adds for one image, gates included."""
        return round(self._macs(widths.executed)) + self._gates(widths)

    def gated_macs(self, widths: Widths) -> tuple[int, Bilinear]:
        """Return the multiply-adds that no gate changes, and those of the other layers by executed counts.

        Args:
            widths: the widths of a plan; the second result takes counts of its gated groups, in their order.
        """
        gated = widths.executed < widths.kept
        rest = self._macs.restricted_to(gated, widths.kept)
        varies = ((rest.in1 != 0) | (rest.out1 != 0)).any(axis=1)
        return round(rest.rows(~varies)(widths.kept[gated])) + self._gates(widths), rest.rows(varies)

    def params(self, widths: Widths) -> int:
        """Parameters after the cut, gates included."""
        gated = widths.executed < widths.kept
        fills = int(((1 + self._filled) * widths.kept)[gated].sum())  # and the biases of gates
        return round(self._params(widths.kept)) + self._biases(widths) + self._gates(widths) + fills

    def latency(self, widths: Widths) -> int:
        """Nanoseconds for one image by this device's table, without gates: it knows none.

        Raises:
            BudgetError: there is no table.
        """
        if self._latency is None:
            raise BudgetError(
                "latency has no price before `PrunableNetwork.enable_latency_prices_` has found its table"
            )
        return self._latency(widths.kept)

    def vanishing_shares(self, price: Callable[[CostModel, Widths], int]) -> NDArray[np.float64]:
        """Return, for each group, the share of a dense price saved if it vanished: [groups].

        `price` is one of this class's methods, such as `CostModel.macs`.
        """
        whole = price(self, self.dense)
        saved = []
        for index in range(len(self.groups)):
            without = self._units.copy()
            without[index] = 0
            saved.append(1 - price(self, Widths(without, without)) / whole)
        return np.array(saved)

    def _gates(self, widths: Widths) -> int:
        """Count the weights of all gates: as many multiply-adds."""
        gated = (widths.executed < widths.kept).astype(np.float64)
        if not gated.any():
            return 0
        table = self._gate_inputs
        inputs = table.in0 + table.in1 @ widths.kept
        return round(float((gated * inputs) @ widths.kept))

    def _biases(self, widths: Widths) -> int:
        """Count the biases that compensation adds."""
        total = 0.0
        for touched, (fixed, per_unit) in self._new_biases:
            if (widths.kept < self._units)[touched].any():
                total += fixed + float(per_unit @ widths.kept)
        return round(total)


def _mac_rows(graph: ChannelGraph, axes: Axes) -> list[Row]:
    rows = []
    for layer in graph.layers.values():
        ins = axes.constant() if layer.depthwise else axes.positions(layer.name, "in", layer.cin)
        applied = layer.positions * layer.kernel
        coefficient = applied if layer.depthwise else applied / layer.conv_groups
        rows.append((float(coefficient), ins, axes.positions(layer.name, "out", layer.cout)))
    rows.append((float(graph.other_macs), axes.constant(), axes.constant()))
    return rows


def _parameter_row(
    graph: ChannelGraph, model: nn.Module, axes: Axes, name: str, bare: Mapping[str, int]
) -> Row:
    tensor = bare_tensor(model, name)
    owner, _, attribute = name.rpartition(".")
    if name in bare:
        size = tensor.size(bare[name])
        return tensor.numel() / size, axes.constant(), axes.positions(name, "parameter", size)
    layer = graph.layers.get(owner)
    if layer is not None and attribute == "weight":
        ins = axes.constant() if layer.depthwise else axes.positions(owner, "in", layer.cin)
        dense = layer.cout * (1 if layer.depthwise else layer.cin)
        return tensor.numel() / dense, ins, axes.positions(owner, "out", layer.cout)
    if tensor.dim() == 1:
        return 1.0, axes.constant(), axes.positions(owner, "out", len(tensor))
    return float(tensor.numel()), axes.constant(), axes.constant()


def _new_biases(
    graph: ChannelGraph, model: nn.Module, axes: Axes
) -> list[tuple[NDArray[np.bool_], tuple[float, NDArray[np.float64]]]]:
    biases = []
    for layer in graph.layers.values():
        if needs_bias(model, layer):
            touched = axes.positions(layer.name, "in", layer.cin)[1] > 0
            biases.append((touched, axes.positions(layer.name, "out", layer.cout)))
    return biases


def needs_bias(model: nn.Module, layer: LayerShape) -> bool:
    """Return whether a shift of the layer's output would need a bias that it does not have."""
    module: Any = model.get_submodule(layer.name)
    refitted = not isinstance(module, TRANSPOSED)  # calibration keeps no moments of their inputs
    return refitted and module.bias is None and layer.batch_norm is None


def count_params(model: nn.Module) -> int:
    """Count the parameters of a network as it stands."""
    return sum(parameter.numel() for parameter in model.parameters())
