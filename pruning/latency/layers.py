"""Time the layers of a network by themselves, at a grid of widths."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from prunegym.pruning.graph import ChannelGraph
from prunegym.pruning.latency.records import LayerTimes, rising
from prunegym.pruning.surgery.cutting import AxisCut, Structure, axis_size, rebuild_

TimeOf: TypeAlias = Callable[[nn.Module, Tensor], float]  # milliseconds of a network for one image

BLOCK = 16  # channels that kernels work on at once: cost rises by steps of as many
FIRST_BLOCK_END = 64  # each block has its ends timed up to here, then those of each doubling
ROUNDS = 3  # each some time after the other; the fastest counts, since other work only adds


@dataclass(frozen=True)
class LayerGrid:
    """Calls of layers of one shape, and the widths to time them at."""

    layers: tuple[str, ...]
    kind: str  # the module in words, its options among them
    input_shape: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    conv_groups: int  # 1 of a depthwise layer: any of its channels may go

    @property
    def points(self) -> int:
        """The number of pairs of widths."""
        return len(self.inputs) * len(self.outputs)


def layer_grids(model: nn.Module, graph: ChannelGraph) -> list[LayerGrid]:
    """Return the layers of a network, with those of equal shape in one grid.

    Args:
        model: the dense network as it is deployed.
        graph: the network's groups; frozen channels are timed at their dense width alone.
    """
    pruned = {
        (member.owner, axis)
        for group in graph.prunable
        for axis, members in (("out", (*group.writers, *group.carriers)), ("in", group.readers))
        for member in members
    }
    alike: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for name, shape in _calls(model, graph):
        layer, module = graph.layers[name], model.get_submodule(name)
        inputs = _widths(layer.cin, layer.conv_groups, (name, "in") in pruned and not layer.depthwise)
        step = layer.cout // layer.cin if layer.depthwise else layer.conv_groups
        outputs = _widths(layer.cout, step, (name, "out") in pruned)
        conv_groups = 1 if layer.depthwise else layer.conv_groups
        alike[repr(module), shape, inputs, outputs, conv_groups].append(name)
    return [LayerGrid(tuple(names), *shared) for shared, names in alike.items()]


@torch.no_grad()
def _calls(model: nn.Module, graph: ChannelGraph) -> list[tuple[str, tuple[int, ...]]]:
    """Return each call of a layer for one image: its name, and the shape of its input."""
    calls: list[tuple[str, tuple[int, ...]]] = []

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, args: calls.append((name, tuple(args[0].shape)))

    handles = [model.get_submodule(name).register_forward_pre_hook(note(name)) for name in graph.layers]
    try:
        model(image_for(model, graph))
    finally:
        for handle in handles:
            handle.remove()
    return calls


def image_for(model: nn.Module, graph: ChannelGraph) -> Tensor:
    """Return noise of the shape of one image, [1, ...], for a network."""
    return _noise((1, *graph.input_shape), model)


def _noise(shape: tuple[int, ...], model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(next(model.parameters()))


def _widths(size: int, step: int, pruned: bool) -> tuple[int, ...]:
    return widths_to_time(size, step) if pruned else (size,)


def widths_to_time(size: int, step: int = 1) -> tuple[int, ...]:
    """Return widths, ascending, between which a time may be interpolated.

    The ends of blocks and the widths just beyond, where cost jumps; of a wide layer not of each block.

    Args:
        size: the width of the dense layer.
        step: widths are multiples of this, of which a block then has BLOCK.
    """
    maximum = size // step
    counts = {1, min(8, maximum), maximum}
    end = BLOCK
    while end < maximum:
        counts |= {end, end + 1}
        end += BLOCK if end < FIRST_BLOCK_END else end
    return tuple(step * count for count in sorted(counts))


def time_layers(
    model: nn.Module, grids: list[LayerGrid], time_of: TimeOf, bar: tqdm[Any]
) -> tuple[LayerTimes, ...]:
    """Return the times of layers, each the fastest of ROUNDS; the bar moves on with each.

    Args:
        model: the dense network as it is deployed.
        grids: the layers and widths to time, from `layer_grids`.
        time_of: times a layer on an input.
        bar: the progress bar.
    """
    fastest = [np.full((len(grid.inputs), len(grid.outputs)), np.inf) for grid in grids]
    for _ in range(ROUNDS):
        for grid, times in zip(grids, fastest, strict=True):
            layer = model.get_submodule(grid.layers[0])
            for place in np.ndindex(*times.shape):
                cin, cout = grid.inputs[place[0]], grid.outputs[place[1]]
                thin = thinned(layer, cin, cout, grid.conv_groups)
                shape = list(grid.input_shape)
                axis = -1 - len(getattr(thin, "kernel_size", ()))
                shape[axis] = axis_size(nn.ModuleDict({"it": thin}), "it", "in")
                times[place] = min(times[place], time_of(thin, _noise(tuple(shape), thin)))
                bar.update()
    return tuple(
        LayerTimes(grid.layers, grid.inputs, grid.outputs, rising(times))
        for grid, times in zip(grids, fastest, strict=True)
    )


def thinned(layer: nn.Module, cin: int, cout: int, conv_groups: int) -> nn.Module:
    """Return a copy of a layer with its first channels, as many of each convolution group.

    Args:
        layer: a convolution or linear layer.
        cin: kept inputs; all of a depthwise layer, whose inputs are cut with its outputs.
        cout: kept outputs.
        conv_groups: the number of convolution groups, see `LayerGrid`.
    """
    holder = nn.ModuleDict({"layer": copy.deepcopy(layer)})
    widths: tuple[tuple[Literal["out", "in"], int], ...] = (("out", cout), ("in", cin))
    sizes = {axis: axis_size(holder, "layer", axis) for axis, _ in widths}
    cuts = []
    for axis, width in widths:
        count, size = width // conv_groups, sizes[axis] // conv_groups  # of one convolution group
        kept = tuple(group * size + i for group in range(conv_groups) for i in range(count))
        if width < sizes[axis]:
            cuts.append(AxisCut("layer", axis, kept))
    rebuild_(holder, None, Structure(tuple(cuts)))
    return holder["layer"]
