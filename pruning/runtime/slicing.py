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

from prunegym.pruning.graph import find_groups
from prunegym.pruning.runtime.gates import (
    GatedInput,
    RuntimeGates,
    detach_gates_,
    gates_of,
    pooled_input,
)
from prunegym.pruning.runtime.slices import Choice, FilledBias, GatedAxis, SelectedAxis, Slice, filled_bias
from prunegym.pruning.surgery.cutting import CONVOLUTIONS, TRANSPOSED
from prunegym.pruning.surgery.equalization import fuse_batch_norms, replace_module_

# With at least so many weights and at most so many output positions, a convolution runs as a matrix product
# with its weight stored input channel first: slicing by input is then fast (docs/decisions.md, D26). A 1x1
# convolution always does.
MIN_WEIGHTS_FOR_PRODUCT = 2**19
MAX_POSITIONS_FOR_PRODUCT = 64


@torch.no_grad()
def deployed(model: nn.Module, input_shape: Sequence[int]) -> nn.Module:
    """Return a copy for inference that computes the same up to rounding.

    Every BatchNorm that alone follows a layer is fused into it. With gates, layers that write, carry or read
    gated channels run on the selected ones only, and the images of a batch run one by one, since each has
    channels of its own.

    Args:
        model: a network, gated or not; it is not changed. The copy belongs on its device: deploy anew after
            moving it, since parts of the copy are no parameters and would stay behind.
        input_shape: the shape of one image.
    """
    model, gates = fused(model, input_shape)
    if gates is None:
        return model
    for name, sliced in _sliced_layers(model, gates).items():
        replace_module_(model, name, sliced)
    return OneByOne(model)


def fused(model: nn.Module, input_shape: Sequence[int]) -> tuple[nn.Module, RuntimeGates | None]:
    """Return (a copy with BatchNorms fused, as in `deployed`, and without its gates; its gates)."""
    model = copy.deepcopy(model).eval()
    gates = gates_of(model)
    detach_gates_(model)
    return fuse_batch_norms(model, find_groups(model, input_shape)), gates


class OneByOne(nn.Module):
    """Runs the images of a batch one after the other."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's outputs for all images, in one tensor."""
        if len(images) == 1:
            return self.network(images)
        return torch.cat([self.network(image[None]) for image in images])


@dataclass
class _Gated:
    """The roles of one layer for the gates of a network."""

    decides: list[Choice] = field(default_factory=list)
    outputs: GatedAxis = field(default_factory=list)
    inputs: GatedAxis = field(default_factory=list)
    reads: list[tuple[Choice, GatedInput]] = field(default_factory=list)  # the same as `inputs`


def _sliced_layers(model: nn.Module, gates: RuntimeGates) -> dict[str, _SlicedLayer]:
    roles: dict[str, _Gated] = defaultdict(_Gated)
    for site in gates.sites:
        gate = gates.gate_for(site.group)
        if not gate.may_skip:
            continue
        choice = Choice(gate)
        roles[site.writer].decides.append(choice)
        for name, places in site.outputs.items():
            roles[name].outputs.append((choice, places))
        for name, places in site.readers.items():
            roles[name].inputs.append((choice, places))
            roles[name].reads.append((choice, GatedInput(choice.gate, name, places)))
    layers = {name: model.get_submodule(name) for name in roles}
    return {
        name: _SlicedLayer(layer, roles[name])
        for name, layer in layers.items()
        if not isinstance(layer, nn.Identity)  # a BatchNorm that was fused
    }


class _SlicedLayer(nn.Module):
    """A layer that reads the selected channels of its input and computes the selected ones of its output."""

    def __init__(self, layer: Any, gated: _Gated) -> None:
        super().__init__()
        self._decides = gated.decides
        self._read = _selected(gated.inputs)
        self._written = _selected(gated.outputs)
        self._axes = [axis for axis in (self._read, self._written) if axis is not None]
        self._varies = any(axis.varies for axis in self._axes)
        # the value that each input channel counts as where it is skipped, [1, cin]; None if none can be
        fill = [gated_input.fill_by_channel() for _, gated_input in gated.reads]
        self._unread = torch.stack(fill).sum(0).detach()[None] if fill else None
        # a 1x1 convolution without stride and padding
        plain = isinstance(layer, nn.Conv2d) and layer.stride == (1, 1) and layer.padding == (0, 0)
        self._pointwise = plain and layer.kernel_size == (1, 1)
        self._by_input = self._weights_by_input(layer)  # before its weight is replaced
        fills = gated.reads and not isinstance(layer, TRANSPOSED)
        self._bias = filled_bias(layer, gated.reads) if fills else None
        self._steps: list[Slice | FilledBias] = []  # in the order in which each image takes them
        self._parts: dict[str, Slice] = {}  # attribute of the layer -> its slice
        self._replace_tensors_(layer)
        carries = self._written is not None and not gated.decides
        self._size_attribute = _size_attribute(layer) if carries else None
        self._counts: list[int] = []  # the lengths of `_axes` that all tensors have now
        self.layer = layer
        self._fit_()

    def _replace_tensors_(self, layer: Any) -> None:
        """Replace each tensor that has an entry per output by a plain one, filled anew for each image."""
        for name in ("weight", "bias", "running_mean", "running_var"):
            whole = getattr(layer, name, None)
            if name == "bias" and self._bias is not None:
                self._steps.append(self._bias)
                whole = self._bias.part
            if whole is not None:
                delattr(layer, name)
                setattr(layer, name, self._sliced(name, whole, layer))

    def _sliced(self, name: str, whole: Tensor, layer: Any) -> Tensor:
        """Plan the slice of a tensor that each image needs; return the tensor that will hold it."""
        if name != "weight":
            step = Slice(whole.detach(), self._written)
        else:  # of a transposed convolution by input, then by output of one conv group; of others vice versa
            axes = (self._written, self._read)
            rows, columns = axes[::-1] if isinstance(layer, TRANSPOSED) else axes
            step = Slice(whole.detach(), rows, columns, getattr(layer, "groups", 1))
        if step.rows is None and step.columns is None:
            return step.whole
        self._steps.append(step)
        self._parts[name] = step
        return step.part

    def forward(self, x: Tensor) -> Tensor:
        """Compute for one image: [1, selected inputs, ...] -> [1, selected outputs, ...]."""
        if self._read is not None:
            self._read.update()
        for choice in self._decides:
            pooled = pooled_input(self.layer, x)  # of all channels, skipped ones counting as their fill
            if self._read is not None and self._unread is not None:
                pooled = self._unread.index_copy(1, self._read.positions, pooled)
            choice.choose(pooled)
        if self._written is not None:
            self._written.update()
        if self._varies:
            self._fit_()
        if self._by_input is not None and (
            self._pointwise or math.prod(_output_size(self.layer, x)) <= MAX_POSITIONS_FOR_PRODUCT
        ):
            return self._product(x)
        for step in self._steps:
            step.update()
        return self.layer(x)

    def _fit_(self) -> None:
        """Resize all tensors that each image fills anew, if its counts differ from the last image's."""
        counts = [axis.count for axis in self._axes]
        if counts == self._counts:
            return
        for name, step in self._parts.items():
            step.fit()
            setattr(self.layer, name, step.part)
        if self._by_input is not None:
            self._by_input.fit()
        if self._size_attribute is not None and self._written is not None:
            name, channels = self._size_attribute
            setattr(self.layer, name, self._written.count // channels)
        self._counts = counts

    def _weights_by_input(self, layer: Any) -> Slice | None:
        """Return the weights as [cin, kernel, cout] if the layer may be run as a product, else None."""
        plain = type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros"
        if not plain or isinstance(layer.padding, str) or self._read is None or self._written is not None:
            return None
        weight = layer.weight.detach().flatten(2).permute(1, 2, 0).contiguous()
        return (
            Slice(weight, self._read)
            if self._pointwise or weight.numel() >= MIN_WEIGHTS_FOR_PRODUCT
            else None
        )

    def _product(self, x: Tensor) -> Tensor:
        """Return the layer's output as a product of the unfolded input and the selected weights."""
        assert self._by_input is not None
        assert self._bias is not None  # a reader that is not transposed has fills
        self._by_input.update()
        self._bias.update()
        layer = self.layer
        if self._pointwise:
            (seen,) = x.flatten(2)
        else:
            (seen,) = functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        output = torch.addmm(self._bias.part, seen.T, self._by_input.part.flatten(0, 1)).T
        return output.reshape(1, -1, *_output_size(layer, x))


def _selected(gated: GatedAxis) -> SelectedAxis | None:
    return SelectedAxis(gated, gated[0][0].bias.device) if gated else None


def _output_size(layer: Any, x: Tensor) -> tuple[int, ...]:
    """Return height and width of a convolution's output."""
    fields = zip(x.shape[2:], layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)
    return tuple(
        (size + 2 * pad - gap * (kernel - 1) - 1) // step + 1 for size, kernel, step, pad, gap in fields
    )


def _size_attribute(layer: Any) -> tuple[str, int] | None:
    """Return the size that a carrier's `forward` looks at, and the output channels that it counts as one."""
    depthwise = isinstance(layer, CONVOLUTIONS) and 1 < layer.groups == layer.in_channels
    if depthwise and not isinstance(layer, TRANSPOSED):
        return "groups", layer.out_channels // layer.in_channels
    if isinstance(layer, nn.GroupNorm):
        return "num_groups", layer.num_channels // layer.num_groups
    return ("num_features", 1) if hasattr(layer, "num_features") else None
