"""Error curves: the loss of a group's readers at each ratio, from cached moments, without a forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunegym.pruning.calibration.moments import RIDGE, Moments
from prunegym.pruning.calibration.statistics import Calibration
from prunegym.pruning.graph import ChannelGroup, Member
from prunegym.pruning.plan import kept_units


@torch.no_grad()
def error_curve(
    model: nn.Module,
    group: ChannelGroup,
    calibration: Calibration,
    *,
    ratios: Sequence[float],
    scores: Tensor,
) -> tuple[float, ...]:
    """Return the loss of the group's readers when it alone is pruned, for each static ratio.

    Units are removed in the order of their `scores`, [units], the lowest first.

    The loss is the share of output variance that least squares cannot restore, averaged over the readers:
    0 is none, 1 is all. Readers without moments (transposed convolutions) do not count.
    """
    ranking = scores.argsort(descending=True, stable=True)
    counts = [kept_units(group.units, ratio) for ratio in ratios]
    losses = [
        _losses(model.get_submodule(reader.owner), reader, ranking, counts, calibration.moments[reader.owner])
        for reader in group.readers
        if reader.owner in calibration.moments
    ]
    return tuple(torch.tensor(losses).mean(0).tolist()) if losses else (0.0,) * len(counts)


def _losses(
    layer: Any, reader: Member, ranking: Tensor, counts: Sequence[int], moments: Moments
) -> list[float]:
    """Return one reader's loss for each number of kept units, from one factorisation for all of them."""
    weight = layer.weight.double()
    cin, block = weight.size(1), weight[0, 0].numel()
    ranked = torch.tensor(reader.channels)[ranking]  # [units, channels per unit], best first
    ranked = ranked[ranked < cin].unflatten(0, (len(ranking), -1))  # the pattern repeats in every conv group
    others = torch.ones(cin, dtype=torch.bool).index_fill_(0, ranked.flatten(), False).nonzero()[:, 0]
    channels = torch.cat([others, ranked.flatten()])
    order = (channels[:, None] * block + torch.arange(block)).flatten().to(weight.device)
    starts = [(len(others) + count * ranked.size(1)) * block for count in counts]
    total, lost = 0.0, [0.0] * len(counts)
    for covariance, rows in zip(
        moments.covariances, weight.flatten(1).unflatten(0, (len(moments.covariances), -1)), strict=True
    ):
        factor, ordered = covariance.factor(order, ridge=RIDGE), rows[:, order]
        total += float((ordered @ factor).square().sum())
        for i, start in enumerate(starts):
            lost[i] += float((ordered[:, start:] @ factor[start:, start:]).square().sum())
    return [loss / total if total > 0 else 0.0 for loss in lost]
