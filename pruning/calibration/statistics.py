"""Calibration: one pass over inputs of the dense network that collects the statistics of its layers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunegym.pruning.calibration.collectors import (
    ChannelValues,
    Collector,
    Ranges,
    SecondMoments,
    UnfoldedRows,
    by_channel,
    mean_over_positions,
    root_mean_square,
)
from prunegym.pruning.calibration.moments import Moments
from prunegym.pruning.errors import DataError
from prunegym.pruning.graph import ChannelGraph, ChannelGroup
from prunegym.pruning.graph.interpreter import Lockstep
from prunegym.pruning.modes import evaluating, taking_gradients
from prunegym.pruning.registry import Registry
from prunegym.pruning.surgery.cutting import TRANSPOSED

USUAL = ("moments", "pooled", "magnitudes", "means", "rows")  # what static and runtime pruning read
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
class Survey:
    """What a statistic is to be taken of."""

    graph: ChannelGraph
    inputs: CalibrationInputs
    generator: torch.Generator  # draws positions; shared by the statistics of one calibration

    @property
    def model(self) -> nn.Module:
        """The dense network, as it is observed."""
        return self.inputs.reference

    @property
    def images(self) -> int:
        """The number of calibration inputs."""
        return sum(map(len, self.inputs.batches))

    @property
    def readers(self) -> list[str]:
        """The layers that read prunable groups."""
        return _readers(self.graph.prunable)

    @property
    def gated(self) -> list[ChannelGroup]:
        """The prunable groups that may take a gate."""
        return [group for group in self.graph.prunable if not group.ungated]

    def with_kernels(self, layers: Iterable[str]) -> list[str]:
        """Return those of some layers whose inputs can be unfolded: all but transposed convolutions."""
        return [name for name in layers if not isinstance(self.model.get_submodule(name), TRANSPOSED)]


@dataclass(frozen=True)
class Statistic:
    """A statistic of the dense network: taken in the one pass over all inputs, or by a pass of its own."""

    collector: Callable[[Survey], Collector] | None = None
    passes: Callable[[Survey], Mapping[str, Any]] | None = None  # -> module -> value
    beside: str | None = None  # another statistic that it extends: it then holds the values of both


# those of one pass draw their positions in this order
STATISTICS: Registry[Statistic] = Registry("statistic")


@dataclass(frozen=True, eq=False)
class Calibration:
    """Statistics of the dense network on the calibration inputs: name -> module -> value."""

    statistics: Mapping[str, Mapping[str, Any]]
    inputs: CalibrationInputs  # for compensations that run the network again

    def __getitem__(self, name: str) -> Mapping[str, Any]:
        """Return a statistic by its name in STATISTICS.

        Raises:
            LookupError: nothing that is in use has asked for it.
        """
        if name not in self.statistics:
            raise LookupError(
                f"the statistic {name!r} was not collected; name it among the `statistics` of what reads it"
            )
        return self.statistics[name]

    @property
    def moments(self) -> Mapping[str, Moments]:
        """Reader -> moments of its input."""
        return self["moments"]

    @property
    def pooled(self) -> Mapping[str, Tensor]:
        """Writer that may take a gate -> mean over positions of its input, [images, cin]."""
        return self["pooled"]

    @property
    def magnitudes(self) -> Mapping[str, Tensor]:
        """Reader behind it -> root mean square over positions of its input, [images, cin]."""
        return self["magnitudes"]

    @property
    def means(self) -> Mapping[str, Tensor]:
        """Reader behind it -> mean over positions of its input, [images, cin]."""
        return self["means"]

    @property
    def rows(self) -> Mapping[str, Tensor]:
        """Reader behind it -> unfolded inputs, [conv groups, rows, dimensions]."""
        return self["rows"]


def calibrate(
    graph: ChannelGraph,
    inputs: CalibrationInputs,
    *,
    statistics: Collection[str] = USUAL,
    seed: int = 0,
) -> Calibration:
    """Observe the dense network on calibration inputs (see docs/decisions.md, D3).

    Args:
        graph: the network's groups.
        inputs: the inputs and the network that they run through, in evaluation mode; it is left as it was.
        statistics: names in STATISTICS of those to take.
        seed: the seed of the sampled positions.

    Raises:
        UnknownNameError: there is no such statistic.
        DataError: the network's activations are not finite.
    """
    survey = Survey(graph, inputs, torch.Generator().manual_seed(seed))
    asked = {name for name in statistics if STATISTICS[name]}  # an unknown name is refused
    asked |= {beside for name in asked if (beside := STATISTICS[name].beside)}
    chosen = {name: one for name, one in STATISTICS.items() if name in asked}
    collectors = {name: one.collector(survey) for name, one in chosen.items() if one.collector}
    _collect(graph, inputs, list(collectors.values()))
    found: dict[str, Mapping[str, Any]] = {name: one.result() for name, one in collectors.items()}
    found |= {name: one.passes(survey) for name, one in chosen.items() if one.passes}
    found |= {name: {**found[one.beside], **found[name]} for name, one in chosen.items() if one.beside}
    for name, of_layer in found.get("moments", {}).items():
        if not of_layer.mean.isfinite().all():
            raise DataError(f"the inputs of layer {name} are not finite on the calibration images")
    return Calibration(found, inputs)


def _readers(groups: Iterable[ChannelGroup]) -> list[str]:
    return list(dict.fromkeys(reader.owner for group in groups for reader in group.readers))


def _moments(survey: Survey) -> Collector:
    return SecondMoments(survey.with_kernels(survey.readers), survey.generator)


def _layer_moments(survey: Survey) -> Collector:
    others = [name for name in survey.graph.layers if name not in set(survey.readers)]
    return SecondMoments(survey.with_kernels(others), torch.Generator().manual_seed(0))


def _pooled(survey: Survey) -> Collector:
    return ChannelValues([group.layers[0] for group in survey.gated], mean_over_positions)


def _magnitudes(survey: Survey) -> Collector:
    return ChannelValues(_readers(survey.gated), root_mean_square)


def _means(survey: Survey) -> Collector:
    return ChannelValues(_readers(survey.gated), mean_over_positions)


def _rows(survey: Survey) -> Collector:
    positions = max(1, GATED_ROWS // survey.images)
    return UnfoldedRows(survey.with_kernels(_readers(survey.gated)), survey.generator, positions)


def _ranges(survey: Survey) -> Collector:
    return Ranges(survey.graph.layers)


def _gradients(survey: Survey) -> Mapping[str, Tensor]:
    """Return layer -> root mean square over positions of the gradient at its output, [images, cout].

    The gradient is that of the cross-entropy of the network's own answer, its most likely class: how much
    that answer hangs on each output. Where inputs are drawn layer by layer there is no answer, and no layer.
    """
    model, layers = survey.model, list(survey.graph.layers)
    if survey.inputs.layerwise is not None:
        return {}
    found: dict[str, list[Tensor]] = {name: [] for name in layers}
    device = next(model.parameters()).device
    outputs: list[tuple[str, Tensor]] = []  # of each call

    def keep(name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: Any, y: Tensor) -> Tensor:
            outputs.append((name, y))
            return y.clone()  # what follows may change it in place

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
    try:
        with evaluating(model), taking_gradients(model, list(model.parameters())), torch.enable_grad():
            for batch in survey.inputs.batches:
                logits = model(batch.to(device)).flatten(1)
                loss = functional.cross_entropy(logits, logits.argmax(1), reduction="sum")
                gradients = torch.autograd.grad(loss, [y for _, y in outputs])
                by_layer: dict[str, list[Tensor]] = {}
                for (name, _), gradient in zip(outputs, gradients, strict=True):
                    by_layer.setdefault(name, []).append(by_channel(model.get_submodule(name), gradient))
                for name, parts in by_layer.items():
                    found[name].append(root_mean_square(torch.cat(parts, dim=2)))
                outputs.clear()
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(parts) for name, parts in found.items() if parts}


for _name, _statistic in {
    "moments": Statistic(_moments),
    "pooled": Statistic(_pooled),
    "magnitudes": Statistic(_magnitudes),
    "means": Statistic(_means),
    "rows": Statistic(_rows),
    "layer_moments": Statistic(_layer_moments, beside="moments"),
    "ranges": Statistic(_ranges),
    "gradients": Statistic(passes=_gradients),
}.items():
    STATISTICS.register(_name)(_statistic)


@torch.no_grad()
def _collect(graph: ChannelGraph, inputs: CalibrationInputs, collectors: Sequence[Collector]) -> None:
    """Run the network on its calibration inputs, and show each collector the modules that it wants."""
    wanted = {
        name: [collector for collector in collectors if collector.wants(name)]
        for name, _ in inputs.reference.named_modules()
    }
    wanted = {name: by for name, by in wanted.items() if by}

    def watch(name: str, x: Tensor, y: Tensor | None) -> None:
        for collector in wanted[name]:
            collector.add(name, inputs.reference.get_submodule(name), x, y)

    with evaluating(inputs.reference):
        if inputs.layerwise is None:
            _run(inputs.reference, inputs.batches, wanted, watch)
            return

        def watch_layer(name: str, x: Tensor) -> None:
            reads = any(collector.reads_outputs for collector in wanted[name])
            watch(name, x, inputs.reference.get_submodule(name)(x) if reads else None)

        _run_layerwise(graph, inputs, wanted.keys() & graph.layers.keys(), watch_layer)


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
            _run(inputs.reference, inputs.batches, layers, lambda name, x, y: watch(name, x))
        else:
            _run_layerwise(graph, inputs, layers, watch)


def _run(
    model: nn.Module,
    batches: Iterable[Tensor],
    names: Collection[str],
    watch: Callable[[str, Tensor, Tensor], None],
) -> None:
    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda module, args, y: watch(name, before.pop(name, args[0]), y)

    before: dict[str, Tensor] = {}

    def remember(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            before[name] = args[0].clone()  # a block may change its input in place

        return hook

    device = next(model.parameters()).device
    blocks = [name for name in names if any(True for _ in model.get_submodule(name).children())]
    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    handles += [model.get_submodule(name).register_forward_pre_hook(remember(name)) for name in blocks]
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
