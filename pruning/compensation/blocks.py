"""Least squares for the layers that read a residual trunk after a block was left out of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunegym.pruning.calibration.statistics import CalibrationInputs
from prunegym.pruning.compensation.readers import grouped_rows, shift_output_
from prunegym.pruning.compensation.sampled_rows import first_images, fit_change, input_rows
from prunegym.pruning.graph import ChannelGraph
from prunegym.pruning.graph.blocks import ResidualBlock, inside
from prunegym.pruning.graph.interpreter import Lockstep
from prunegym.pruning.modes import evaluating
from prunegym.pruning.surgery.cutting import TRANSPOSED


@torch.no_grad()
def refit_after_blocks_(
    model: nn.Module,
    dense: nn.Module,
    graph: ChannelGraph,
    shorter: ChannelGraph,
    inputs: CalibrationInputs,
    blocks: Sequence[ResidualBlock],
) -> None:
    """Refit, in place, what reads the trunk after blocks that were left out, layer by layer in order.

    A layer is fitted to its output in the dense network from what it reads now, with the layers before it
    refitted already. The ridge pulls towards its present weights, so that on these inputs the error is never
    larger than without the fit. A layer with neither a bias nor a BatchNorm behind it stays as it is, since
    the price of a plan counts no new bias.

    That takes inputs which run through the dense network itself. On noise with BatchNorm statistics of its
    own, and where inputs are drawn layer by layer, nothing is refitted.

    Args:
        model: the network without the blocks.
        dense: the dense network.
        graph: the groups of the dense network.
        shorter: those of the network without the blocks, see `without_blocks`.
        inputs: the calibration inputs.
        blocks: the blocks that were left out.
    """
    if inputs.reference is not dense or inputs.layerwise is not None:
        return
    layers = set(_readers_after(graph, shorter, blocks)) & {
        name for name in shorter.layers if _takes_fit(model, shorter, name)
    }
    images = first_images(inputs)
    targets = _outputs(dense, images, layers)
    lockstep = Lockstep(shorter, [model], images)
    with evaluating(model):
        for node in lockstep:
            if node.op == "call_module" and node.target in layers:
                (x,) = lockstep.inputs(node)
                _refit_(model, shorter, str(node.target), x, targets[str(node.target)])


def _readers_after(graph: ChannelGraph, shorter: ChannelGraph, blocks: Sequence[ResidualBlock]) -> list[str]:
    """Return the layers that read, after a block, the channel groups that it has added to."""
    order = {name: index for index, name in enumerate(graph.layers)}
    found = []
    for block in blocks:
        after = order[block.layers[-1]]
        added_to = {
            group.name for group in graph.groups if any(inside(block.name, one) for one in group.layers)
        }
        found += [
            reader.owner
            for group in shorter.groups
            if group.name in added_to
            for reader in group.readers
            if order.get(reader.owner, -1) > after
        ]
    return found


def _takes_fit(model: nn.Module, graph: ChannelGraph, name: str) -> bool:
    module: Any = model.get_submodule(name)
    shifts = graph.layers[name].batch_norm is not None or module.bias is not None
    return shifts and not isinstance(module, TRANSPOSED) and graph.layers[name].calls == 1


def _outputs(dense: nn.Module, images: Tensor, layers: set[str]) -> dict[str, Tensor]:
    """Return the outputs of layers in the dense network, without bias, at the places of `input_rows`."""
    found: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            found[name] = input_rows(module, args[0]) @ grouped_rows(module).mT

        return hook

    handles = [dense.get_submodule(name).register_forward_pre_hook(watch(name)) for name in layers]
    try:
        with evaluating(dense):
            dense(images)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _refit_(model: nn.Module, graph: ChannelGraph, name: str, x: Tensor, target: Tensor) -> None:
    module: Any = model.get_submodule(name)
    seen, weight = input_rows(module, x), grouped_rows(module)
    change, shift = fit_change(seen, target - seen @ weight.mT)
    module.weight.copy_((weight + change.to(weight)).view_as(module.weight))
    shift_output_(model, graph.layers[name], shift.flatten())
