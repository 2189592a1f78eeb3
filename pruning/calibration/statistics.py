"""One pass over inputs of the dense network: second moments per reader, and what gates are fitted to."""

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

GATED_ROWS = 4096  # unfolded inputs kept of a reader behind a gate, from as many images as there are


@dataclass(frozen=True, eq=False)
class CalibrationInputs:
    """What the dense network is observed on: real images, or inputs made from its weights alone."""

    batches: tuple[Tensor, ...]  # of images [batch, channels, height, width]
    reference: nn.Module  # the dense network; for noise with the BatchNorm statistics that the noise has
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
    found = tuple(batches)
    if not sum(map(len, found)):
        raise DataError("there is no calibration image; give at least one")
    return CalibrationInputs(found, model)


@dataclass(frozen=True)
class Calibration:
    """What one pass over the calibration inputs leaves behind."""

    moments: Mapping[str, Moments]  # reader -> moments of its input
    pooled: Mapping[str, Tensor]  # writer that may take a gate -> [images, cin], mean over positions
    magnitudes: Mapping[str, Tensor]  # its readers -> [images, cin], root mean square over positions
    means: Mapping[str, Tensor]  # likewise the mean over positions
    rows: Mapping[str, Tensor]  # likewise some unfolded inputs, by image: [conv groups, rows, dimensions]
    inputs: CalibrationInputs  # for compensations that run the network again


@torch.no_grad()
def calibrate(graph: ChannelGraph, inputs: CalibrationInputs, *, seed: int = 0) -> Calibration:
    """Observe the dense network on calibration inputs (architecture decision 3).

    Args:
        graph: the network's groups.
        inputs: and the network to run them through, in evaluation mode; it is left as it was.
        seed: of the sampled positions.

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
    _check_finite(calibration)
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
    """Run the dense network on its calibration inputs, and show `watch` what enters each of `layers`."""
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
    for number, batch in enumerate(inputs.batches):
        seed = (inputs.layerwise or 0) + number
        lockstep = Lockstep(graph, [inputs.reference], batch.to(device), layerwise=seed)
        for node in lockstep:
            if node.op == "call_module" and node.target in layers:
                watch(str(node.target), *lockstep.inputs(node))


def _check_finite(calibration: Calibration) -> None:
    for name, moments in calibration.moments.items():
        if not moments.mean.isfinite().all():
            raise DataError(f"the inputs of layer {name} are not finite on the calibration images")
