"""The type and registry of criteria, the weights that they read, and the choice of units by score."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from prunegym.pruning.calibration.statistics import Calibration
from prunegym.pruning.graph import ChannelGroup, Member
from prunegym.pruning.registry import Registry
from prunegym.pruning.surgery.cutting import TRANSPOSED

Criterion = Callable[[nn.Module, ChannelGroup, Calibration], Tensor]  # -> [units], float64; larger means keep

CRITERIA: Registry[Criterion] = Registry("criterion")


def statistics_of(criterion: Criterion) -> tuple[str, ...]:
    """Return the statistics that calibration is to collect for a criterion: its attribute `statistics`."""
    return getattr(criterion, "statistics", ())


def reading(*statistics: str) -> Callable[[Criterion], Criterion]:
    """Return a decorator of a criterion that reads these statistics, names in STATISTICS."""

    def mark(criterion: Criterion) -> Criterion:
        criterion.statistics = statistics  # type: ignore[attr-defined]
        return criterion

    return mark


def per_unit(member: Member, values: Tensor) -> Tensor:
    """Sum values over each unit's positions: [positions] -> [units]."""
    return torch.stack([values[list(positions)].sum() for positions in member.channels])


def writer_rows(model: nn.Module, layer: str) -> Tensor:
    """Return a writer's weight as [cout, everything else], float64."""
    module = model.get_submodule(layer)
    weight = module.weight.detach().double().cpu()  # type: ignore[operator]
    if isinstance(module, TRANSPOSED):  # [cin, cout / groups, ...]
        weight = weight.unflatten(0, (module.groups, -1)).transpose(1, 2).flatten(0, 1)
    return weight.flatten(1)


def select(scores: Tensor, count: int) -> Tensor:
    """Return the numbers of the `count` best-scoring units, ascending.

    Example:
        >>> select(torch.tensor([0.1, 3.0, 0.2, 2.0]), 2).tolist()
        [1, 3]
    """
    # stable: equal scores keep the lower number, so a plan cuts alike on every device
    return scores.argsort(descending=True, stable=True)[:count].sort().values
