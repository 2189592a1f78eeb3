"""Networks as they are deployed: BatchNorms fused, and gated layers run on the selected channels alone."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pruning.equalization import fuse_batch_norms
from pruning.graph import find_groups
from pruning.runtime.gates import (
    GatedInput,
    RuntimeGate,
    RuntimeGates,
    constant_response,
    detach_gates_,
    gates_of,
    pooled_input,
)
from pruning.surgery import CONVOLUTIONS, TRANSPOSED

# Slicing weights by input is slow, and at few places it is most of a convolution's work. From so many weights
# on, at so few places or less, it is a product with weights that lie by input: 1.3 to 2 times as fast.
MANY_WEIGHTS = 2**19
FEW_PLACES = 64

TENSORS = ("weight", "bias", "running_mean", "running_var")  # of layers and carriers, one entry per output


@torch.no_grad()
def deployed(model: nn.Module, input_shape: Sequence[int]) -> nn.Module:
    """Return a copy for inference that computes the same, to rounding.

    Every BatchNorm that alone follows a layer is fused into it. With gates, what writes, carries or reads
    gated channels runs on the selected ones only, and the images of a batch run one by one, since each has
    channels of its own.

    Args:
        model: a network, gated or not; it is not changed.
        input_shape: of one image.
    """
    model = copy.deepcopy(model).eval()
    gates = gates_of(model)
    detach_gates_(model)
    model = fuse_batch_norms(model, find_groups(model, input_shape))
    if gates is None:
        return model
    for name, sliced in _sliced_layers(model, gates).items():
        model.set_submodule(name, sliced)
    return OneByOne(model)


class OneByOne(nn.Module):
    """Runs the images of a batch one after the other."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return what the network gives for each image, in one tensor."""
        if len(images) == 1:
            return self.network(images)
        return torch.cat([self.network(image[None]) for image in images])


class _Choice(nn.Module):
    """A gate that selects units for one image."""

    def __init__(self, gate: RuntimeGate) -> None:
        super().__init__()
        self.gate = gate
        self.units = torch.arange(gate.executed)  # that run for the image in flight, ascending

    def choose(self, pooled: Tensor) -> None:
        """Select for one image, [1, inputs]."""
        self.units = self.gate.scores(pooled)[0].topk(self.gate.executed, sorted=False).indices.sort().values


GatedAxis = list[tuple[_Choice, Sequence[int]]]  # each with the unit at each position, -1 for none


class _Axis(nn.Module):
    """Which positions of a layer's axis are left for the image in flight."""

    always: Tensor  # positions that no gate has a say in

    def __init__(self, gated: GatedAxis) -> None:
        super().__init__()
        self._choices = tuple(choice for choice, _ in gated)  # no submodules: each belongs to its writer
        of_unit = [_positions_by_unit(torch.tensor(places)) for _, places in gated]
        size = len(gated[0][1])
        ungated = torch.ones(size, dtype=torch.bool)
        for number, found in enumerate(of_unit):
            ungated[found] = False
            self.register_buffer(f"of_unit_{number}", found)
        self.register_buffer("always", ungated.nonzero()[:, 0])
        self.count = len(self.always) + sum(
            choice.gate.executed * found.size(1) for choice, found in zip(self._choices, of_unit, strict=True)
        )
        self._as_chosen = torch.equal(of_unit[0], torch.arange(size)[:, None])

    def positions(self) -> Tensor:
        """Return them, ascending."""
        if self._as_chosen:
            return self._choices[0].units
        chosen = [
            getattr(self, f"of_unit_{number}").index_select(0, choice.units).flatten()
            for number, choice in enumerate(self._choices)
        ]
        return torch.cat([self.always, *chosen]).sort().values


def _positions_by_unit(places: Tensor) -> Tensor:
    """Return [units, positions of each], from the unit at each position, -1 for none."""
    gated = (places >= 0).nonzero()[:, 0]
    ordered = gated[places[gated].argsort(stable=True)]
    return ordered.view(int(places.max()) + 1, -1)


class _Fill(nn.Module):
    """What a reader gives for skipped units, each its fill everywhere, beyond what it gives if none runs."""

    of_unit: Tensor  # [units, cout]

    def __init__(self, layer: nn.Module, choice: _Choice, gated: GatedInput) -> None:
        super().__init__()
        self._choice = (choice,)  # no submodule: it belongs to its writer
        responses = constant_response(layer, torch.diag(gated.fill_by_channel()))[gated.positions]
        zeros = responses.new_zeros(len(gated.gate.bias), responses.size(1))
        self.register_buffer("of_unit", zeros.index_add(0, gated.units.to(zeros.device), responses))

    def withdrawn(self) -> Tensor:
        """Return what the units that run do not add: [cout]."""
        return self.of_unit.index_select(0, self._choice[0].units).sum(0)


@dataclass
class _Gated:
    """What the gates of a network have to do with one layer."""

    decides: list[_Choice] = field(default_factory=list)
    outputs: GatedAxis = field(default_factory=list)
    inputs: GatedAxis = field(default_factory=list)
    fills: list[tuple[_Choice, GatedInput]] = field(default_factory=list)


def _sliced_layers(model: nn.Module, gates: RuntimeGates) -> dict[str, _SlicedLayer]:
    found: dict[str, _Gated] = defaultdict(_Gated)
    for site in gates.sites:
        if site.executed == site.units:
            continue
        choice = _Choice(gates.of(site.group))
        found[site.writer].decides.append(choice)
        for name, places in site.outputs.items():
            found[name].outputs.append((choice, places))
        for name, places in site.readers.items():
            found[name].inputs.append((choice, places))
            if not isinstance(model.get_submodule(name), TRANSPOSED):
                found[name].fills.append((choice, GatedInput(choice.gate, name, places)))
    layers = {name: model.get_submodule(name) for name in found}
    return {
        name: _SlicedLayer(layer, found[name])
        for name, layer in layers.items()
        if not isinstance(layer, nn.Identity)  # a BatchNorm that was fused
    }


class _SlicedLayer(nn.Module):
    """A layer that reads the selected channels of its input, and computes the selected ones of its output."""

    unread: Tensor  # what each input channel counts as where it is skipped, [1, cin]

    def __init__(self, layer: Any, gated: _Gated) -> None:
        super().__init__()
        self.decides = nn.ModuleList(gated.decides)
        self.outputs = _Axis(gated.outputs) if gated.outputs else None
        self.inputs = _Axis(gated.inputs) if gated.inputs else None
        fills = [_Fill(layer, choice, one) for choice, one in gated.fills]
        self.fills = nn.ModuleList(fills)
        self.register_buffer("unread", _fill_by_channel(gated))
        wholes = {name: getattr(layer, name, None) for name in TENSORS}
        if fills:
            unread = torch.stack([fill.of_unit.sum(0) for fill in fills]).sum(0)
            wholes["bias"] = unread if layer.bias is None else layer.bias + unread
        self._names = []
        for name, whole in wholes.items():
            if whole is not None:
                self._names.append(name)
                self.register_buffer(f"whole_{name}", whole.detach())
                delattr(layer, name)  # for each image, a plain tensor takes its place
        _tell_sizes_(layer, self.outputs)
        self.layer = layer
        self.register_buffer("by_input", self._by_input())

    def forward(self, x: Tensor) -> Tensor:
        """Compute for one image: [1, selected inputs, ...] -> [1, selected outputs, ...]."""
        read = None if self.inputs is None else self.inputs.positions()
        choice: Any
        for choice in self.decides:
            choice.choose(self._pooled(x, read))
        if self.by_input is not None and math.prod(_output_size(self.layer, x)) <= FEW_PLACES:
            return self._product(x, read)
        for name in self._names:
            setattr(self.layer, name, self._selected(name, read))
        return self.layer(x)

    def _by_input(self) -> Tensor | None:
        """Return the weights as [cin, kernel, cout] if the layer may be run as a product, else None."""
        layer = self.layer
        plain = type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros"
        if not plain or isinstance(layer.padding, str) or self.inputs is None or self.outputs is not None:
            return None
        weight = self.get_buffer("whole_weight")
        return weight.flatten(2).permute(1, 2, 0).contiguous() if weight.numel() >= MANY_WEIGHTS else None

    def _product(self, x: Tensor, read: Tensor | None) -> Tensor:
        """Return what the layer gives, by a product of the unfolded input with the selected weights."""
        layer = self.layer
        assert read is not None  # else there is no `by_input`
        seen = functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)[0]
        weight = self.get_buffer("by_input").index_select(0, read).flatten(0, 1)
        output = torch.addmm(self._selected("bias", None), seen.T, weight).T
        return output.reshape(1, -1, *_output_size(layer, x))

    def _selected(self, name: str, read: Tensor | None) -> Tensor:
        """Return the part of a tensor that the image in flight needs."""
        part: Tensor = getattr(self, f"whole_{name}")
        if name == "bias":
            fill: Any
            for fill in self.fills:
                part = part - fill.withdrawn()
        transposed = isinstance(self.layer, TRANSPOSED)
        if self.outputs is not None:
            written = self.outputs.positions()
            if transposed and name == "weight":
                part = part.index_select(1, self._of_one_conv_group(written))
            else:
                part = part.index_select(0, written)
        if read is not None and name == "weight":
            if transposed:
                return part.index_select(0, read)
            return part.index_select(1, self._of_one_conv_group(read))
        return part

    def _pooled(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """Return the pooled input of all channels, skipped ones counting as their fill: [1, cin]."""
        pooled = pooled_input(self.layer, x)
        return pooled if positions is None else self.unread.index_copy(1, positions, pooled)

    def _of_one_conv_group(self, positions: Tensor) -> Tensor:
        """Return the positions in one convolution group; all groups have the same pattern."""
        return positions[: len(positions) // getattr(self.layer, "groups", 1)]


def _output_size(layer: Any, x: Tensor) -> tuple[int, ...]:
    """Return height and width of a convolution's output."""
    fields = zip(x.shape[2:], layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)
    return tuple(
        (size + 2 * pad - gap * (kernel - 1) - 1) // step + 1 for size, kernel, step, pad, gap in fields
    )


def _fill_by_channel(gated: _Gated) -> Tensor | None:
    """Return what each input channel counts as where it is skipped: [1, cin]; None without gated inputs."""
    if not gated.inputs:
        return None
    fill = torch.zeros(len(gated.inputs[0][1]))
    for _, one in gated.fills:
        fill = fill.to(one.fill) + one.fill_by_channel()
    return fill.detach()[None]


def _tell_sizes_(layer: Any, outputs: _Axis | None) -> None:
    """Set the sizes that a carrier's forward looks at."""
    if outputs is None:
        return
    if isinstance(layer, CONVOLUTIONS) and 1 < layer.groups == layer.in_channels:  # depthwise
        layer.groups = outputs.count * layer.in_channels // layer.out_channels
    elif hasattr(layer, "num_features"):
        layer.num_features = outputs.count
