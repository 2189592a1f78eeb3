"""One pass over inputs of the dense network: second moments per reader, and what gates are fitted to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pruning.errors import DataError
from pruning.graph import ChannelGraph
from pruning.lockstep import Lockstep
from pruning.modes import evaluating
from pruning.surgery import CONVOLUTIONS, TRANSPOSED

POSITIONS_PER_IMAGE = 64  # sampled output positions of a layer; 64 x 512 images give every layer 32k rows
RIDGE = 1e-3  # of the mean input variance; chosen on ResNet-20 by reward images, flat from 1e-4 to 1e-2
WIDE = 8192  # input dimensions above which the full covariance (0.5 GB) gives way to sampled rows
WIDE_ROWS = 2048
GATED_ROWS = 4096  # unfolded inputs kept of a reader behind a gate, from as many images as there are


class Covariance(Protocol):
    """What least squares needs to know of a reader's inputs (one convolution group of them)."""

    def regression(self, removed: Tensor, kept: Tensor, *, ridge: float) -> Tensor:
        """Return C[R,S] (C[S,S] + lambda I)^-1, [len(removed), len(kept)], lambda = ridge * mean diagonal."""
        ...

    def factor(self, order: Tensor, *, ridge: float) -> Tensor:
        """Return L, [dimensions, rank], zero above its diagonal, with LL' = C + lambda I in the given order.

        The corner L[k:, k:] is then a factor of what the first k inputs cannot explain of the others.
        """
        ...


@dataclass(frozen=True)
class FullCovariance:
    """A covariance matrix: [dimensions, dimensions], float64."""

    matrix: Tensor

    def regression(self, removed: Tensor, kept: Tensor, *, ridge: float) -> Tensor:
        """See Covariance."""
        inner = self.matrix[kept][:, kept]
        factor = torch.linalg.cholesky(damped(inner, ridge * self.matrix.diagonal().mean()))
        return torch.cholesky_solve(self.matrix[kept][:, removed], factor).T

    def factor(self, order: Tensor, *, ridge: float) -> Tensor:
        """See Covariance."""
        penalty = ridge * self.matrix.diagonal().mean()
        return torch.linalg.cholesky(damped(self.matrix[order][:, order], penalty))


@dataclass(frozen=True)
class SampledCovariance:
    """A covariance known by sampled, centred rows: [rows, dimensions], with fewer rows than dimensions."""

    rows: Tensor

    def regression(self, removed: Tensor, kept: Tensor, *, ridge: float) -> Tensor:
        """See Covariance. Solved in the space of rows: X_R' (X_S X_S' + n lambda I)^-1 X_S."""
        inner, outer = self.rows[:, kept], self.rows[:, removed]
        penalty = ridge * self.rows.square().mean()
        factor = torch.linalg.cholesky(damped(inner @ inner.T, len(self.rows) * penalty))
        return outer.T @ torch.cholesky_solve(inner, factor)

    def factor(self, order: Tensor, *, ridge: float) -> Tensor:
        """See Covariance. Without the ridge, which would give it full rank."""
        return torch.linalg.qr(self.rows[:, order], mode="r").R.T / len(self.rows) ** 0.5


def damped(matrix: Tensor, penalty: Tensor) -> Tensor:
    """Return a covariance with a penalty on its diagonal, so that it can be factored."""
    # the floor keeps the factorisation alive where all inputs are constant (a dead layer)
    floor = 1e-10 * matrix.diagonal().max() + torch.finfo(matrix.dtype).tiny ** 0.5
    return matrix + (penalty + floor) * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


@dataclass(frozen=True)
class Moments:
    """First and second moments of a reader's unfolded input u, per convolution group."""

    mean: Tensor  # [conv groups, dimensions], float64
    covariances: tuple[Covariance, ...]  # one per convolution group


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


class _FullSums:
    """Running sums over batches, about a pivot that keeps the differences small."""

    def __init__(self, u: Tensor) -> None:
        groups, _, dimensions = u.shape
        self._total = 0
        self._pivot = u.mean(1, keepdim=True)
        self._first = torch.zeros(groups, dimensions, dtype=torch.float64, device=u.device)
        self._second = torch.zeros(groups, dimensions, dimensions, dtype=torch.float64, device=u.device)

    def add(self, u: Tensor) -> None:
        """Take in inputs [conv groups, rows, dimensions]."""
        centred = u - self._pivot
        self._total += u.size(1)
        self._first += centred.sum(1).double()
        self._second += (centred.mT @ centred).double()

    def moments(self) -> Moments:
        """Return mean and covariance of all that was added."""
        shift = self._first / self._total
        covariance = self._second / self._total - shift[:, :, None] * shift[:, None, :]
        return Moments(
            self._pivot[:, 0].double() + shift, tuple(FullCovariance(group) for group in covariance)
        )


class _SampledRows:
    """Some rows kept as they are, for readers too wide for a covariance matrix: every few, as they come."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._kept = self._seen = 0
        self._stride = 1

    def add(self, u: Tensor) -> None:
        """Take in inputs [conv groups, rows, dimensions]."""
        some = u[:, -self._seen % self._stride :: self._stride]
        self._rows.append(some.clone())  # a view would keep all
        self._seen += u.size(1)
        self._kept += some.size(1)
        if self._kept > 2 * WIDE_ROWS:
            step = -(-self._kept // WIDE_ROWS)
            self._rows = [torch.cat(self._rows, dim=1)[:, ::step].clone()]
            self._kept = self._rows[0].size(1)
            self._stride *= step

    def moments(self) -> Moments:
        """Return the mean and, as a covariance, an even sample of the centred rows."""
        rows = torch.cat(self._rows, dim=1)
        rows = rows[:, :: -(-rows.size(1) // WIDE_ROWS)].double()
        mean = rows.mean(1)
        return Moments(mean, tuple(SampledCovariance(group) for group in rows - mean[:, None]))


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
    model = inputs.reference
    generator = torch.Generator().manual_seed(seed)
    readers = {name for name in _readers(graph) if not isinstance(model.get_submodule(name), TRANSPOSED)}
    sums: dict[str, _FullSums | _SampledRows] = {}
    pooled: dict[str, list[Tensor]] = {group.layers[0]: [] for group in graph.prunable if not group.ungated}
    gated = [reader.owner for group in graph.prunable if not group.ungated for reader in group.readers]
    magnitudes: dict[str, list[Tensor]] = {name: [] for name in gated}
    means: dict[str, list[Tensor]] = {name: [] for name in gated}
    rows: dict[str, list[Tensor]] = {name: [] for name in gated if name in readers}
    each = max(1, GATED_ROWS // sum(map(len, inputs.batches)))  # of every image

    def watch(name: str, x: Tensor) -> None:
        module = model.get_submodule(name)
        if name in readers:
            u = unfolded(module, x, generator)
            if name not in sums:
                sums[name] = _SampledRows() if u.size(2) > WIDE else _FullSums(u)
            sums[name].add(u)
        flat = _by_channel(module, x)
        if name in pooled:
            pooled[name].append(flat.mean(2))
        if name in magnitudes:
            magnitudes[name].append(flat.square().mean(2).sqrt())
            means[name].append(flat.mean(2))
        if name in rows:
            rows[name].append(unfolded(module, x, generator, positions=each))

    observe(graph, inputs, {*readers, *pooled, *magnitudes}, watch)
    calibration = Calibration(
        moments={name: found.moments() for name, found in sums.items()},
        pooled={name: torch.cat(found) for name, found in pooled.items()},
        magnitudes={name: torch.cat(found) for name, found in magnitudes.items()},
        means={name: torch.cat(found) for name, found in means.items()},
        rows={name: torch.cat(found, dim=1) for name, found in rows.items()},
        inputs=inputs,
    )
    _check_finite(calibration)
    return calibration


def _readers(graph: ChannelGraph) -> list[str]:
    return list(dict.fromkeys(reader.owner for group in graph.prunable for reader in group.readers))


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


def _by_channel(module: nn.Module, x: Tensor) -> Tensor:
    """Return [images, channels, positions]."""
    if x.dim() == 2:
        return x[:, :, None]
    return x.flatten(1, -2).mT if isinstance(module, nn.Linear) else x.flatten(2)


def unfolded(module: Any, x: Tensor, generator: torch.Generator, *, positions: int | None = None) -> Tensor:
    """Return what a reader's kernel sees at sampled output positions.

    Args:
        module: a convolution (not a transposed one) or linear layer.
        x: its input, [batch, channels, ...], or [batch, ..., features] for a linear layer.
        generator: chooses the positions, the same for all images of the batch.
        positions: how many at most; POSITIONS_PER_IMAGE unless given.

    Returns:
        [conv groups, rows, dimensions]: dimensions as in a row of the layer's flattened weight.
    """
    if isinstance(module, nn.Linear):
        x = x.flatten(1, -2) if x.dim() > 2 else x[:, None]
        places = sampled_positions(x.size(1), generator, positions)
        return x[:, places].reshape(1, -1, x.size(-1))
    windows = _padded(module, x)
    spatial = len(module.kernel_size)
    for dim, (size, stride, dilation) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True), start=2
    ):
        windows = windows.unfold(dim, dilation * (size - 1) + 1, stride)[..., ::dilation]
    sizes = windows.shape[2 : 2 + spatial]
    at: tuple[Tensor, ...] = torch.unravel_index(
        sampled_positions(sizes.numel(), generator, positions), sizes
    )
    where: tuple[Any, ...] = (slice(None), slice(None), *at)
    seen = windows[where]  # [batch, channels, positions, *kernel]
    return seen.unflatten(1, (module.groups, -1)).transpose(2, 3).movedim(1, 0).flatten(3).flatten(1, 2)


def _padded(module: Any, x: Tensor) -> Tensor:
    """Return a convolution's input with the padding around it, as its kernel sees it."""
    if type(module) in CONVOLUTIONS:
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        return functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    with _PaddedInput(module) as seen:  # a variant may pad by itself, as sizes ask
        module.forward(x)  # its hooks are for others
    return seen.value


class _PaddedInput(TorchFunctionMode):
    """Notes what the convolution that runs inside of it reads."""

    value: Tensor

    def __init__(self, module: Any) -> None:
        super().__init__()
        self._module = module

    def _amounts(self, padding: Any) -> list[int]:
        if isinstance(padding, str):  # the module's own, which knows what it comes to
            return self._module._reversed_padding_repeated_twice
        by_side = [padding] * len(self._module.kernel_size) if isinstance(padding, int) else padding
        return [amount for one in reversed(by_side) for amount in (one, one)]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (functional.conv1d, functional.conv2d, functional.conv3d):
            given = dict(
                zip(("input", "weight", "bias", "stride", "padding"), args, strict=False), **(kwargs or {})
            )
            self.value = functional.pad(given["input"], self._amounts(given.get("padding", 0)))
        return func(*args, **(kwargs or {}))


def sampled_positions(count: int, generator: torch.Generator, most: int | None = None) -> Tensor:
    """Return at most `most` of `count` places; generators of one seed choose alike."""
    most = most or POSITIONS_PER_IMAGE
    if count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=generator)[:most]
