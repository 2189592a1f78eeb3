"""Merging: each removed unit is merged into the kept one most like it (Kim et al. 2020, "Neuron Merging").

`merging` has the BatchNorm factors that collinear filters ask for, and corrects the means; `merging-released`
has the factors of the authors' code, which are upside-down and take the running variance for sigma.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunegym.pruning.compensation.least_squares import output_mean
from prunegym.pruning.compensation.readers import shift_output_
from prunegym.pruning.compensation.records import COMPENSATIONS, Compensation, PlannedCut
from prunegym.pruning.compensation.unit_weights import (
    OutputAffine,
    channel_view,
    folded_rows,
    pruned_groups,
    redistribute_,
    redistribute_single_writer_groups_,
    select_channels,
)

COSINE_SHARE = 0.85  # lambda of the authors' scripts for VGG and ResNet-56 on CIFAR-10
MIN_COSINE = 0.1  # their threshold: a unit that is like no other is dropped


def _merging_(model: nn.Module, planned: PlannedCut) -> None:
    """Merge units by their folded weights, then restore the mean of every reader's output."""
    for group, kept, removed in pruned_groups(planned):
        rows, offsets = folded_rows(planned.dense, planned.graph, group)
        redistribute_(model, group, merging_shares(rows, offsets, kept, removed), kept, removed)
    _restore_means_(model, planned)


def _merging_released_(model: nn.Module, planned: PlannedCut) -> None:
    """Merge as the authors' code does, which leaves residual streams alone: their units are dropped."""
    redistribute_single_writer_groups_(model, planned, by_batch_norm=released_shares, by_bias=bias_shares)


COMPENSATIONS.register("merging")(Compensation(_merging_, shifts_bias=True))
COMPENSATIONS.register("merging-released")(Compensation(_merging_released_, shifts_bias=False))


def merging_shares(rows: Tensor, offsets: Tensor, kept: Tensor, removed: Tensor) -> Tensor:
    """Return the factor by which each removed unit is merged into the kept unit that is most like it.

    Where the rows are r_i = a r_j, the units are y_i = a y_j + c with c = o_i - a o_j; with a > 0 and c = 0 a
    ReLU changes nothing in that.

    Args:
        rows: [units, ...] with BatchNorms folded in; a negative or zero factor is then no special case.
        offsets: [units, channels per unit].
        kept: numbers of the kept units.
        removed: numbers of the removed units.

    Returns:
        [len(removed), len(kept)], at most one entry per row: the slope a.
    """
    slopes = _slopes(rows, kept, removed)
    own, hosts = offsets[removed], offsets[kept]
    # |o_i - a o_j|^2 multiplied out: all pairs at once would take [removed, kept, channels]
    square = own.square().sum(1)[:, None] - 2 * slopes * (own @ hosts.T) + slopes**2 * hosts.square().sum(1)
    return _one_host(_cosines(rows, kept, removed), square.clamp(min=0).sqrt(), slopes)


def released_shares(rows: Tensor, affine: OutputAffine, kept: Tensor, removed: Tensor) -> Tensor:
    """Return the factors of the authors' code: s (gamma_j / gamma_i) (var_i / var_j), s the ratio of norms.

    Args:
        rows: [units, ...], BatchNorm not folded in.
        affine: the BatchNorm of the writer, [units].
        kept: numbers of the kept units.
        removed: numbers of the removed units.
    """
    own, host = affine.select(removed[:, None]), affine.select(kept[None, :])
    ratio = _slopes(rows, kept, removed)
    scale = ratio * (host.gamma / own.gamma) * (own.variance / host.variance)
    crossing = ratio * (own.mean - own.variance * own.beta / own.gamma)
    mismatch = (host.gamma / host.variance * (crossing - host.mean) + host.beta).abs() / scale
    return _one_host(_cosines(rows, kept, removed), mismatch, scale)


def bias_shares(rows: Tensor, bias: Tensor, kept: Tensor, removed: Tensor) -> Tensor:
    """Return the authors' factors without BatchNorm: ratios of norms, the bias [units] as one more weight."""
    rows = torch.cat([rows, bias[:, None]], dim=1)
    cosines = _cosines(rows, kept, removed)
    return _one_host(cosines, torch.zeros_like(cosines), _slopes(rows, kept, removed))


def _slopes(rows: Tensor, kept: Tensor, removed: Tensor) -> Tensor:
    norms = rows.norm(dim=1)
    return torch.where(norms[kept] > 0, norms[removed][:, None] / norms[kept], 0.0)


def _cosines(rows: Tensor, kept: Tensor, removed: Tensor) -> Tensor:
    units = functional.normalize(rows, dim=1)
    return units[removed] @ units[kept].T


def _one_host(cosines: Tensor, mismatch: Tensor, slopes: Tensor) -> Tensor:
    """Return the slopes at the published score's best kept unit, 0 elsewhere; all [removed, kept]."""
    low, high = mismatch.aminmax(dim=1, keepdim=True)
    spread = (high - low).clamp(min=torch.finfo(mismatch.dtype).tiny)  # all alike: the cosine decides
    score = COSINE_SHARE * (1 - cosines) + (1 - COSINE_SHARE) * (mismatch - low) / spread
    host = score.argmin(1, keepdim=True)
    slope = torch.where(cosines.gather(1, host) >= MIN_COSINE, slopes.gather(1, host), 0.0)
    return torch.zeros_like(slopes).scatter(1, host, slope)


@torch.no_grad()
def _restore_means_(model: nn.Module, planned: PlannedCut) -> None:
    """Shift every reader's output to its mean in the dense network, on the calibration inputs.

    The mean of the removed units beyond that of their hosts (the offset c, and what the activation makes of
    it) is measured, not taken from BatchNorm's Gaussian: that holds for any operator and at the borders.
    """
    for cut in planned.cuts:
        moments = planned.calibration.moments.get(cut.owner)
        if cut.axis == "in" and moments is not None:
            layer: Any = model.get_submodule(cut.owner)
            dense: Any = planned.dense.get_submodule(cut.owner)
            columns = channel_view(layer.weight, layer, "in")
            is_removed = torch.ones(columns.size(0) * columns.size(1), dtype=torch.bool)
            is_removed[list(cut.kept)] = False
            columns[select_channels(columns, is_removed.nonzero()[:, 0])] = 0
            shift = output_mean(dense.weight, moments) - output_mean(layer.weight, moments)
            shift_output_(model, planned.graph.layers[cut.owner], shift)
