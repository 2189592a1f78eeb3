"""Collectors of statistics: objects that take in what a network's modules read and write, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prunegym.pruning.calibration.moments import MAX_FULL_INPUTS, FullSums, Moments, SampledRows
from prunegym.pruning.calibration.unfolding import unfolded


class Collector(Protocol):
    """Collects one statistic of some modules, batch by batch; `result` is keyed by module.

    Modules are layers, or any others that are called with one tensor and return one. Of inputs that are drawn
    layer by layer (see `CalibrationInputs`) only layers are seen.
    """

    reads_outputs: bool  # whether `add` is to get outputs, which cost time where inputs are drawn by layer

    def wants(self, name: str) -> bool:
        """Return whether the statistic is taken of this module."""
        ...

    def add(self, name: str, module: nn.Module, x: Tensor, y: Tensor | None) -> None:
        """Take in the module's input and output for one batch, [images, channels, ...]."""
        ...

    def result(self) -> Mapping[str, Any]:
        """Return the statistic of every module, over all that was added."""
        ...


class SecondMoments:
    """Mean and covariance of each layer's unfolded input, at sampled output positions.

    Args:
        layers: convolutions, other than transposed ones, and linear layers.
        generator: draws the positions.
    """

    reads_outputs = False

    def __init__(self, layers: Iterable[str], generator: torch.Generator) -> None:
        self._layers = frozenset(layers)
        self._generator = generator
        self._sums: dict[str, FullSums | SampledRows] = {}

    def wants(self, layer: str) -> bool:
        """See Collector."""
        return layer in self._layers

    def add(self, layer: str, module: nn.Module, x: Tensor, y: Tensor | None) -> None:
        """See Collector."""
        u = unfolded(module, x, self._generator)
        if layer not in self._sums:
            self._sums[layer] = SampledRows() if u.size(2) > MAX_FULL_INPUTS else FullSums(u)
        self._sums[layer].add(u)

    def result(self) -> dict[str, Moments]:
        """See Collector."""
        return {layer: sums.moments() for layer, sums in self._sums.items()}


class ChannelValues:
    """One value for each image and channel of a layer's input: [images, channels].

    Args:
        layers: any layers.
        reduce: takes [images, channels, positions] to [images, channels].
    """

    reads_outputs = False

    def __init__(self, layers: Iterable[str], reduce: Callable[[Tensor], Tensor]) -> None:
        self._batches: dict[str, list[Tensor]] = {layer: [] for layer in layers}
        self._reduce = reduce

    def wants(self, layer: str) -> bool:
        """See Collector."""
        return layer in self._batches

    def add(self, layer: str, module: nn.Module, x: Tensor, y: Tensor | None) -> None:
        """See Collector."""
        self._batches[layer].append(self._reduce(by_channel(module, x)))

    def result(self) -> dict[str, Tensor]:
        """See Collector."""
        return {layer: torch.cat(batches) for layer, batches in self._batches.items()}


class UnfoldedRows:
    """Rows of each layer's unfolded input, image after image: [conv groups, rows, dimensions].

    Args:
        layers: convolutions, other than transposed ones, and linear layers.
        generator: draws the output positions.
        positions: the number of positions for each image.
    """

    reads_outputs = False

    def __init__(self, layers: Iterable[str], generator: torch.Generator, positions: int) -> None:
        self._batches: dict[str, list[Tensor]] = {layer: [] for layer in layers}
        self._generator = generator
        self._positions = positions

    def wants(self, layer: str) -> bool:
        """See Collector."""
        return layer in self._batches

    def add(self, layer: str, module: nn.Module, x: Tensor, y: Tensor | None) -> None:
        """See Collector."""
        self._batches[layer].append(unfolded(module, x, self._generator, positions=self._positions))

    def result(self) -> dict[str, Tensor]:
        """See Collector."""
        return {layer: torch.cat(batches, dim=1) for layer, batches in self._batches.items()}


class Ranges:
    """The smallest and the largest value of each channel of a layer's input: [2, channels].

    Args:
        layers: any layers.
    """

    reads_outputs = False

    def __init__(self, layers: Iterable[str]) -> None:
        self._layers = frozenset(layers)
        self._ranges: dict[str, Tensor] = {}

    def wants(self, layer: str) -> bool:
        """See Collector."""
        return layer in self._layers

    def add(self, layer: str, module: nn.Module, x: Tensor, y: Tensor | None) -> None:
        """See Collector."""
        values = by_channel(module, x)
        low, high = values.amin((0, 2)), values.amax((0, 2))
        if layer in self._ranges:
            before = self._ranges[layer]
            low, high = torch.minimum(before[0], low), torch.maximum(before[1], high)
        self._ranges[layer] = torch.stack([low, high])

    def result(self) -> dict[str, Tensor]:
        """See Collector."""
        return self._ranges


def mean_over_positions(x: Tensor) -> Tensor:
    """Return the mean over the last axis."""
    return x.mean(2)


def root_mean_square(x: Tensor) -> Tensor:
    """Return the root mean square over the last axis."""
    return x.square().mean(2).sqrt()


def by_channel(module: nn.Module, x: Tensor) -> Tensor:
    """Return [images, channels, positions]."""
    if x.dim() == 2:
        return x[:, :, None]
    return x.flatten(1, -2).mT if isinstance(module, nn.Linear) else x.flatten(2)
