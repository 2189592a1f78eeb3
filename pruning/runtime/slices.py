"""Parts of a sliced layer: choices of gates, the positions that they select, and slices of tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from prunegym.pruning.runtime.gates import GatedInput, RuntimeGate, constant_response


@dataclass
class Choice:
    """A gate that selects units for one image."""

    gate: RuntimeGate
    units: Tensor = field(init=False)  # that run for the image in flight, ascending
    count: int = field(init=False)  # of these; before the first image, the most that any can have

    def __post_init__(self) -> None:
        self.weight, self.bias = self.gate.weight.detach(), self.gate.bias.detach()
        self.count = len(self.bias) if self.gate.count_of else self.gate.executed

    def choose(self, pooled: Tensor) -> None:
        """Select for one image, [1, inputs]."""
        scores = functional.linear(pooled, self.weight, self.bias)
        if self.gate.count_of is not None:
            self.count = int(self.gate.count_of(pooled, scores))
        self.units = scores[0].topk(self.count, sorted=False).indices.sort().values


GatedAxis = list[tuple[Choice, Sequence[int]]]  # each with the unit at each position, -1 for none


class SelectedAxis:
    """The selected positions of a layer's axis for the image in flight."""

    positions: Tensor  # ascending
    count: int  # of these; before the first image, the most that any can have

    def __init__(self, gated: GatedAxis, device: torch.device) -> None:
        self._choices = [choice for choice, _ in gated]
        self.varies = any(choice.gate.count_of is not None for choice in self._choices)
        of_unit = [_positions_by_unit(torch.tensor(places)) for _, places in gated]
        size = len(gated[0][1])
        always = torch.ones(size, dtype=torch.bool)
        for positions in of_unit:
            always[positions] = False
        self._as_chosen = torch.equal(of_unit[0], torch.arange(size)[:, None])
        self._always = always.nonzero()[:, 0].to(device)
        self._of_unit = [positions.to(device) for positions in of_unit]
        pairs = zip(self._choices, of_unit, strict=True)
        self.count = len(self._always) + sum(choice.count * positions.size(1) for choice, positions in pairs)

    def update(self) -> None:
        """Set `positions` and `count` as the gates have chosen."""
        if self._as_chosen:
            self.positions = self._choices[0].units
        else:
            pairs = zip(self._of_unit, self._choices, strict=True)
            chosen = [positions.index_select(0, choice.units).flatten() for positions, choice in pairs]
            self.positions = torch.cat([self._always, *chosen]).sort().values
        self.count = self.positions.numel()


def _positions_by_unit(places: Tensor) -> Tensor:
    """Return [units, positions of each], from the unit at each position, -1 for none."""
    gated = (places >= 0).nonzero()[:, 0]
    ordered = gated[places[gated].argsort(stable=True)]
    return ordered.view(int(places.max()) + 1, -1)


@dataclass
class Slice:
    """A copy of the selected part of a tensor, filled anew for each image without a large allocation."""

    whole: Tensor
    rows: SelectedAxis | None  # along the first dimension; None: all
    columns: SelectedAxis | None = None  # along the second
    conv_groups: int = 1  # that share one pattern of columns
    part: Tensor = field(init=False)  # of the size that `fit` found

    def __post_init__(self) -> None:
        self.whole = self.whole.contiguous()
        self._room = self.whole.new_empty(math.prod(self._shape()))  # before the first image: for the largest
        self.fit()

    def fit(self) -> None:
        """Size `part` for the counts of the image in flight."""
        shape = self._shape()
        self.part = self._room[: math.prod(shape)].view(shape)

    def _shape(self) -> list[int]:
        shape = list(self.whole.shape)
        if self.rows is not None:
            shape[0] = self.rows.count
        if self.columns is not None:
            shape[1] = self._width = self.columns.count // self.conv_groups
        return shape

    def update(self) -> None:
        """Copy for the image in flight."""
        if self.columns is None:
            if self.rows is not None:
                torch.index_select(self.whole, 0, self.rows.positions, out=self.part)
            return
        columns = self.columns.positions[: self._width]
        if self.rows is None:
            torch.index_select(self.whole, 1, columns, out=self.part)
        else:  # both axes at once (docs/decisions.md, D26)
            entries = (self.rows.positions[:, None] * self.whole.size(1) + columns).flatten()
            torch.index_select(self.whole.flatten(0, 1), 0, entries, out=self.part.flatten(0, 1))


@dataclass
class FilledBias:
    """A reader's bias plus the response to its skipped channels, each being its fill everywhere."""

    base: Tensor  # [cout], if all channels were skipped
    tables: list[tuple[Tensor, Choice]]  # the response to each unit if it is skipped, [units, cout]
    part: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.part = torch.empty_like(self.base)

    def update(self) -> None:
        """Compute `part` for the image in flight."""
        left = self.base
        for table, choice in self.tables:
            left = torch.sub(left, table.index_select(0, choice.units).sum(0), out=self.part)


def filled_bias(layer: Any, fills: list[tuple[Choice, GatedInput]]) -> FilledBias:
    """Return the bias of a reader that is not transposed, from its gates' choices and fills."""
    tables = []
    for choice, gated in fills:
        responses = constant_response(layer, torch.diag(gated.fill_by_channel()))[gated.positions]
        zeros = responses.new_zeros(len(choice.bias), responses.size(1))
        tables.append((zeros.index_add(0, gated.units.to(zeros.device), responses), choice))
    base = torch.stack([table.sum(0) for table, _ in tables]).sum(0)
    return FilledBias(base if layer.bias is None else base + layer.bias, tables)
