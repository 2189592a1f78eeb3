"""Criteria that look only at the weights that write a unit and the BatchNorms that carry it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunegym.pruning.calibration.statistics import Calibration
from prunegym.pruning.criteria.records import CRITERIA, per_unit, writer_rows
from prunegym.pruning.graph import ChannelGroup
from prunegym.pruning.graph.tracing import BATCH_NORMS


@CRITERIA.register("l1")
def l1(model: nn.Module, group: ChannelGroup, calibration: Calibration) -> Tensor:
    """Return the summed magnitude of the weights that write each unit (Li et al. 2017).

    Summed over all writers before ranking: the channels of a residual stream are coupled, so one that is weak
    in one block but strong in another must be kept.
    """
    scores = [per_unit(member, writer_rows(model, member.owner).abs().sum(1)) for member in group.writers]
    return torch.stack(scores).sum(0)


@CRITERIA.register("geometric-median")
def geometric_median(model: nn.Module, group: ChannelGroup, calibration: Calibration) -> Tensor:
    """Return each unit's summed Euclidean distance to all others, by the weights of all its writers.

    A unit in the middle of the others can be replaced by them (FPGM, He et al. 2019).
    """
    rows = [writer_rows(model, member.owner)[torch.tensor(member.channels)] for member in group.writers]
    points = torch.cat([of_units.flatten(1) for of_units in rows], dim=1)  # [units, weights]
    return torch.cdist(points, points).sum(1)


@CRITERIA.register("batch-norm-scale")
def batch_norm_scale(model: nn.Module, group: ChannelGroup, calibration: Calibration) -> Tensor:
    """Return the summed |gamma| of the BatchNorms that carry each unit (network slimming, Liu et al. 2017).

    Only BatchNorms with a learned scale count; a group that has none is scored by `l1`.
    """
    scores = []
    for member in group.carriers:
        module = model.get_submodule(member.owner)
        if isinstance(module, BATCH_NORMS) and module.affine:
            scores.append(per_unit(member, module.weight.detach().double().cpu().abs()))
    return torch.stack(scores).sum(0) if scores else l1(model, group, calibration)
