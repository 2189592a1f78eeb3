"""Each lost filter is spread over all kept ones (Kim et al. 2022, "Leave Before You Leave").

As the authors' code does it: the shares go to the readers without the factor K, and the running variance
stands for sigma. On ResNet-20 and ResNet-56 the same ridge on weights with the BatchNorms folded in was no
better.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunegym.pruning.compensation.records import COMPENSATIONS, Compensation, PlannedCut
from prunegym.pruning.compensation.unit_weights import OutputAffine, redistribute_single_writer_groups_

# The authors choose both anew for each network and ratio, by labels. These are theirs for ResNet-50 on
# CIFAR-100 at 20 and 30 %; a tenfold change of either moved ResNet-56 by no more than about a point.
OFFSET_PENALTY = 1e-5
SHARE_PENALTY = 2e-3


def _lbyl_(model: nn.Module, planned: PlannedCut) -> None:
    """Spread lost filters over kept ones; residual streams, which the code leaves alone, are dropped from."""
    redistribute_single_writer_groups_(
        model, planned, by_batch_norm=spread_shares, by_bias=bias_spread_shares
    )


COMPENSATIONS.register("lbyl")(Compensation(_lbyl_, shifts_bias=False))


def spread_shares(rows: Tensor, affine: OutputAffine, kept: Tensor, gone: Tensor) -> Tensor:
    """Return the shares alpha of the kept filters in each lost one.

    They minimise |w_i - sum_j alpha_j w_j|^2 + lambda_1 (mismatch of the offsets)^2 + lambda_2 sum_j (K_j
    alpha_j)^2 with K_j = (gamma_i / gamma_j) (var_j / var_i), up to the code's own way with the second term:
    where the outer product of its coefficients belongs, the sum of their squares is added to the diagonal.

    Args:
        rows: [units, ...], BatchNorm not folded in.
        affine: of [units].
        kept: numbers of the units that stay.
        gone: numbers of those that do not.

    Returns:
        [len(gone), len(kept)].
    """
    host = affine.select(kept)
    crossing = host.mean - host.variance * host.beta / host.gamma
    gram, targets = rows[kept] @ rows[kept].T, rows[gone] @ rows[kept].T
    shares = []
    for number, target in zip(gone, targets, strict=True):
        lost = affine.select(number)
        scale = lost.gamma / lost.variance
        factor = (lost.gamma / host.gamma) * (host.variance / lost.variance)
        diagonal = OFFSET_PENALTY * scale**2 * crossing.square().sum() + SHARE_PENALTY * factor**2
        pull = OFFSET_PENALTY * scale * (scale * lost.mean - lost.beta) * crossing
        shares.append(torch.linalg.solve(gram + torch.diag(diagonal), target + pull))
    return torch.stack(shares)


def bias_spread_shares(rows: Tensor, bias: Tensor, kept: Tensor, gone: Tensor) -> Tensor:
    """Return the shares without BatchNorm: ridge with an intercept, the bias [units] as one more weight."""
    rows = torch.cat([rows, bias[:, None]], dim=1)
    rows = rows - rows.mean(1, keepdim=True)
    gram = rows[kept] @ rows[kept].T + SHARE_PENALTY * torch.eye(len(kept), dtype=rows.dtype)
    return torch.linalg.solve(gram, rows[kept] @ rows[gone].T).T
