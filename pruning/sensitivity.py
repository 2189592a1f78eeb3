"""How much a group's readers lose at each ratio, known from cached moments without a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pruning.calibration import Calibration
from pruning.compensation import refit, relative_error
from pruning.criteria import CRITERIA, select
from pruning.graph import ChannelGraph, ChannelGroup, Member
from pruning.plan import kept_units


@torch.no_grad()
def error_curve(
    model: nn.Module,
    graph: ChannelGraph,
    group: ChannelGroup,
    calibration: Calibration,
    *,
    ratios: Sequence[float],
    criterion: str,
) -> tuple[float, ...]:
    """Return what the group's readers lose when it alone is pruned, for each static ratio.

    The loss is the share of output variance that least squares cannot restore, averaged over the readers:
    0 is none, 1 is all. Readers without moments (transposed convolutions) do not count.
    """
    scores = CRITERIA[criterion](model, group, calibration)
    curve = []
    for ratio in ratios:
        kept = select(scores, kept_units(group.units, ratio))
        losses = [_loss(model, graph, reader, kept, calibration) for reader in group.readers]
        known = [loss for loss in losses if loss is not None]
        curve.append(sum(known) / len(known) if known else 0.0)
    return tuple(curve)


def _loss(
    model: nn.Module, graph: ChannelGraph, reader: Member, kept: torch.Tensor, calibration: Calibration
) -> float | None:
    moments = calibration.moments.get(reader.owner)
    if moments is None:
        return None
    gone = set(range(len(reader.channels))) - set(kept.tolist())
    lost = {channel for unit in gone for channel in reader.channels[unit]}
    stays = [channel for channel in range(graph.layers[reader.owner].cin) if channel not in lost]
    layer: Any = model.get_submodule(reader.owner)
    return relative_error(layer.weight, refit(layer.weight, moments, torch.tensor(stays)), moments)
