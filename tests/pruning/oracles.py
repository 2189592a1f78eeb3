"""What the code under test must agree with, computed another way."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunegym.pruning.calibration.moments import Covariance, FullCovariance, Moments, SampledCovariance
from prunegym.pruning.compensation import distillation, layerwise_sgd
from prunegym.pruning.graph import ChannelGraph, find_groups
from tests.pruning.example_networks import EXAMPLES, REPRESENTATIVES

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@cache
def example(name: str) -> tuple[nn.Module, ChannelGraph, Tensor]:
    """An example's model, groups and images; not to be changed."""
    model = EXAMPLES[name].model()
    return model, find_groups(model, EXAMPLES[name].input_shape), EXAMPLES[name].images()


@contextmanager
def affordable(name: str, compensation: str) -> Iterator[None]:
    """Let a compensation that iterates take all its steps on a few examples only, and two on the others.

    That a network of some structure comes out as it should does not depend on how often it was stepped.
    """
    with pytest.MonkeyPatch.context() as patch:
        if name not in REPRESENTATIVES:
            if compensation == "distillation":
                patch.setattr(distillation, "STEPS", 2)
            elif compensation == "layerwise-sgd":
                patch.setattr(layerwise_sgd, "ITERATIONS", 2)
        yield


def random_kept(graph: ChannelGraph, seed: int = 0) -> dict[str, Tensor]:
    """A random choice of units to keep in every group that may be pruned."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for group in graph.prunable:
        count = int(torch.randint(1, max(2, group.units), (1,), generator=generator))
        kept[group.name] = torch.randperm(group.units, generator=generator)[:count].sort().values
    return kept


@torch.no_grad()
def silenced_output(
    model: nn.Module, graph: ChannelGraph, kept: Mapping[str, Tensor], images: Tensor
) -> Tensor:
    """The output when no reader's weight looks at the units that are not kept."""
    model = copy.deepcopy(model)
    for group in graph.groups:
        stays = set(kept[group.name].tolist()) if group.name in kept else set(range(group.units))
        for reader in group.readers:
            for unit in set(range(group.units)) - stays:
                for channel in reader.channels[unit]:
                    _ignore_input_(model.get_submodule(reader.owner), channel)
    return model(images)


def _ignore_input_(layer: Any, channel: int) -> None:
    if isinstance(layer, TRANSPOSED):
        layer.weight[channel] = 0
    elif isinstance(layer, CONVOLUTIONS):
        group, place = divmod(channel, layer.in_channels // layer.groups)
        layer.weight.unflatten(0, (layer.groups, -1))[group, :, place] = 0
    else:
        layer.weight[:, channel] = 0


@torch.no_grad()
def counted_macs(model: nn.Module, image: Tensor) -> int:
    """Multiply-adds of one run: every weight is used once at every place."""
    total = 0

    def count(layer: Any, args: tuple[Tensor, ...], result: Tensor) -> None:
        nonlocal total
        places = args[0] if isinstance(layer, TRANSPOSED) else result
        channels = places.size(-1 if isinstance(layer, nn.Linear) else 1)
        total += layer.weight.numel() * places.numel() // channels

    kinds = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)
    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, kinds)]
    model(image[None])
    for handle in handles:
        handle.remove()
    return total


def counted_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_untouched(model: nn.Module, before: Mapping[str, Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def relative_error(weight: Tensor, changed: Tensor, moments: Moments) -> float:
    """Return the share of the layer's output variance lost by `changed`, its mean restored; 0 is perfect."""
    groups = len(moments.covariances)
    dense, lost = (rows.double().flatten(1).unflatten(0, (groups, -1)) for rows in (weight, weight - changed))
    pairs = list(zip(moments.covariances, dense, lost, strict=True))
    total = sum(energy(covariance, rows) for covariance, rows, _ in pairs)
    error = sum(energy(covariance, rows) for covariance, _, rows in pairs)
    return error / total if total > 0 else 0.0


def energy(covariance: Covariance, rows: Tensor) -> float:
    """The variance of all weighted sums together."""
    if isinstance(covariance, FullCovariance):
        return float(torch.einsum("od,de,oe->", rows, covariance.matrix, rows))
    assert isinstance(covariance, SampledCovariance)
    return float((covariance.rows @ rows.T).square().mean(0).sum())
