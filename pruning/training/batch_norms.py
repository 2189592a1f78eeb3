"""Statistics of BatchNorms while a cut network is trained: kept, reestimated or trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunegym.pruning.data import Images
from prunegym.pruning.errors import DataError, PruningError
from prunegym.pruning.graph.tracing import BATCH_NORMS
from prunegym.pruning.modes import evaluating
from prunegym.pruning.registry import unknown_name
from prunegym.pruning.training.distributed import SINGLE_PROCESS, ProcessGroup

KEPT, REESTIMATED, TRAINED = "kept", "reestimated", "trained"
STATISTICS = (KEPT, REESTIMATED, TRAINED)
BATCH_SIZE = 256  # the network's own statistics stand in for the images' while it is observed


def batch_norms_of(model: nn.Module) -> list[Any]:
    """Return the BatchNorms that keep statistics."""
    modules = (module for module in model.modules() if isinstance(module, BATCH_NORMS))
    return [module for module in modules if module.running_mean is not None]


def check_statistics(model: nn.Module, statistics: str) -> None:
    """Check the way in which a network's statistics are to be treated.

    Raises:
        UnknownNameError: `statistics` is none of STATISTICS.
        PruningError: the network has no BatchNorm that keeps any, and they are to change.
    """
    if statistics not in STATISTICS:
        raise unknown_name("way with BatchNorms", statistics, STATISTICS)
    if statistics != KEPT and not batch_norms_of(model):
        raise PruningError(
            f"the network has no BatchNorm whose statistics could be {statistics}; leave it out"
        )


@torch.no_grad()
def reestimate_(model: nn.Module, images: Images, processes: ProcessGroup = SINGLE_PROCESS) -> None:
    """Set the statistics of BatchNorms to those of their inputs over all images, in place.

    One pass. Each BatchNorm normalises by its batch while the ones after it are observed, since its own
    statistics are those of the network before the cut; gates choose as they do in use.

    Args:
        model: the network; its other weights stay as they are.
        images: the images to take the statistics from.
        processes: the processes that hold this network; each runs its share of the batches.

    Raises:
        DataError: there is no image.
        PruningError: the input of a BatchNorm is not finite.
    """
    if not len(images):
        raise DataError("there is no image to estimate statistics from; give at least one")
    device = next(model.parameters()).device
    numbers = torch.arange(len(images)).tensor_split(-(-len(images) // BATCH_SIZE))
    with evaluating(model), _observing(model) as moments:
        for batch in numbers[processes.number :: processes.count]:
            model(images.take(batch).to(device))
    for module, of_process in moments.items():
        _set_statistics_(module, processes.total(of_process))


@contextmanager
def _observing(model: nn.Module) -> Iterator[dict[Any, Tensor]]:
    """Yield, for each BatchNorm, rows [values, their sum, the sum of their squares] x channels, float64."""
    moments = {
        module: torch.zeros(3, module.num_features, dtype=torch.float64, device=module.running_mean.device)
        for module in batch_norms_of(model)
    }

    def observe(module: Any, args: tuple[Tensor, ...]) -> None:
        variance, mean = torch.var_mean(args[0].transpose(0, 1).flatten(1).float(), dim=1, correction=0)
        module.running_mean.copy_(mean)
        module.running_var.copy_(variance)
        mean, variance = mean.double(), variance.double()
        values = args[0].numel() / len(mean)
        moments[module] += values * torch.stack([torch.ones_like(mean), mean, variance + mean.square()])

    handles: list[RemovableHandle] = [module.register_forward_pre_hook(observe) for module in moments]
    try:
        yield moments
    finally:
        for handle in handles:
            handle.remove()


def _set_statistics_(module: Any, moments: Tensor) -> None:
    values, total, squares = moments
    if not values.any():  # a branch that runs in training only
        return
    if not torch.isfinite(moments).all():
        raise PruningError("what a BatchNorm reads is NaN or infinite; check weights and images")
    mean = total / values
    module.running_mean.copy_(mean)
    module.running_var.copy_(
        (squares / values - mean.square()).clamp_min(0) * values / (values - 1).clamp_min(1)
    )
