"""Calibration: one pass over inputs of the dense network that collects the statistics of its layers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunegym.pruning.calibration.collectors import (
    ChannelValues,
    Collector,
    SecondMoments,
    UnfoldedRows,
    mean_over_positions,
    root_mean_square,
)
from prunegym.pruning.calibration.moments import Moments
from prunegym.pruning.errors import DataError
from prunegym.pruning.graph import ChannelGraph, ChannelGroup
from prunegym.pruning.graph.interpreter import Lockstep
from prunegym.pruning.modes import evaluating
from prunegym.pruning.surgery.cutting import TRANSPOSED

GATED_ROWS = 4096  # unfolded inputs of a reader behind a gate, from all calibration images together


@dataclass(frozen=True, eq=False)
class CalibrationInputs:
    """Inputs on which the dense network is observed: real images, or inputs made from its weights alone."""

    batches: tuple[Tensor, ...]  # of images [batch, channels, height, width]
    reference: nn.Module  # the dense network; for noise a copy whose BatchNorms hold the noise's statistics
    layerwise: int | None = None  # the seed of inputs drawn layer by layer, see Lockstep

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        return tuple(self.batches[0].shape[1:])


def real_images(model: nn.Module, batches: Iterable[Tensor]) -> CalibrationInputs:
    """Return calibration inputs that are batches of real images, [batch, channels, height, width].

    Raises:
        DataError: there is none.
    """
    images = tuple(batches)
    if not sum(map(len, images)):
        raise DataError("there is no calibration image; give at least one")
    return CalibrationInputs(images, model)


@dataclass(frozen=True)
class Calibration:
    """Statistics of the dense network, from one pass over the calibration inputs."""

    moments: Mapping[str, Moments]  # reader -> moments of its input
    pooled: Mapping[str, Tensor]  # writer that may take a gate -> [images, cin], mean over positions
    magnitudes: Mapping[str, Tensor]  # reader behind it -> [images, cin], root mean square over positions
    means: Mapping[str, Tensor]  # reader behind it -> [images, cin], mean over positions
    rows: Mapping[str, Tensor]  # reader behind it -> unfolded inputs, [conv groups, rows, dimensions]
    inputs: CalibrationInputs  # for compensations that run the network again


@torch.no_grad()
def calibrate(graph: ChannelGraph, inputs: CalibrationInputs, *, seed: int = 0) -> Calibration:
    """Observe the dense network on calibration inputs (see docs/decisions.md, D3).

    Args:
        graph: the network's groups.
        inputs: the inputs and the network that they run through, in evaluation mode; it is left as it was.
        seed: the seed of the sampled positions.

    Raises:
        DataError: the network's activations are not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    model = inputs.reference
    readers = _readers(graph.prunable)
    refitted = [name for name in readers if not isinstance(model.get_submodule(name), TRANSPOSED)]
    gated = [group for group in graph.prunable if not group.ungated]
    behind_gates = _readers(gated)
    n_images = sum(map(len, inputs.batches))
    # moments before rows: of a layer that both want, they draw their positions in this order
    moments = SecondMoments(refitted, generator)
    pooled = ChannelValues([group.layers[0] for group in gated], mean_over_positions)
    magnitudes = ChannelValues(behind_gates, root_mean_square)
    means = ChannelValues(behind_gates, mean_over_positions)
    rows = UnfoldedRows(
        [name for name in behind_gates if name in refitted], generator, max(1, GATED_ROWS // n_images)
    )
    _collect(graph, inputs, (moments, pooled, magnitudes, means, rows))
    calibration = Calibration(
        moments=moments.result(),
        pooled=pooled.result(),
        magnitudes=magnitudes.result(),
        means=means.result(),
        rows=rows.result(),
        inputs=inputs,
    )
    for name, of_layer in calibration.moments.items():
        if not of_layer.mean.isfinite().all():
            raise DataError(f"the inputs of layer {name} are not finite on the calibration images")
    return calibration


def _readers(groups: Iterable[ChannelGroup]) -> list[str]:
    return list(dict.fromkeys(reader.owner for group in groups for reader in group.readers))


def _collect(graph: ChannelGraph, inputs: CalibrationInputs, collectors: Sequence[Collector]) -> None:
    """Run the network on its calibration inputs, and show each collector the layers that it wants."""

    def watch(name: str, x: Tensor) -> None:
        for collector in collectors:
            if collector.wants(name):
                collector.add(name, inputs.reference.get_submodule(name), x)

    wanted = [name for name in graph.layers if any(collector.wants(name) for collector in collectors)]
    observe(graph, inputs, wanted, watch)


@torch.no_grad()
def observe(
    graph: ChannelGraph,
    inputs: CalibrationInputs,
    layers: Collection[str],
    watch: Callable[[str, Tensor], None],
) -> None:
    """Run the dense network on its calibration inputs; call `watch` with the input of each of `layers`."""
    with evaluating(inputs.reference):
        if inputs.layerwise is None:
            _run(inputs.reference, inputs.batches, layers, watch)
        else:
            _run_layerwise(graph, inputs, layers, watch)


def _run(
    model: nn.Module,
    batches: Iterable[Tensor],
    layers: Collection[str],
    watch: Callable[[str, Tensor], None],
) -> None:
    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, args: watch(name, args[0])

    device = next(model.parameters()).device
    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in layers]
    try:
        for batch in batches:
            model(batch.to(device))
    finally:
        for handle in handles:
            handle.remove()


def _run_layerwise(
    graph: ChannelGraph,
    inputs: CalibrationInputs,
    layers: Collection[str],
    watch: Callable[[str, Tensor], None],
) -> None:
    device = next(inputs.reference.parameters()).device
    for i, batch in enumerate(inputs.batches):
        seed = (inputs.layerwise or 0) + i
        lockstep = Lockstep(graph, [inputs.reference], batch.to(device), layerwise=seed)
        for node in lockstep:
            if node.op == "call_module" and node.target in layers:
                watch(str(node.target), *lockstep.inputs(node))
