"""LBYL: each removed filter is spread over all kept ones (Kim et al. 2022, "Leave Before You Leave").

As the authors' code does it: the shares go to the readers without the factor K, and the running variance
stands for sigma (measured: docs/decisions.md, D23).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunegym.pruning.compensation.records import COMPENSATIONS, Compensation, PlannedCut
from prunegym.pruning.compensation.unit_weights import OutputAffine, redistribute_single_writer_groups_

# The authors choose both anew for each network and ratio, by labels. These are theirs for ResNet-50 on
# CIFAR-100 at 20 and 30 %; see docs/decisions.md, D23.
OFFSET_PENALTY = 1e-5
SHARE_PENALTY = 2e-3


def _lbyl_(model: nn.Module, planned: PlannedCut) -> None:
    """Spread removed filters over kept ones; residual streams are left alone, so their units are dropped."""
    redistribute_single_writer_groups_(
        model, planned, by_batch_norm=spread_shares, by_bias=bias_spread_shares
    )


COMPENSATIONS.register("lbyl")(Compensation(_lbyl_, shifts_bias=False, statistics=()))


def spread_shares(rows: Tensor, affine: OutputAffine, kept: Tensor, removed: Tensor) -> Tensor:
    """Return the shares alpha of the kept filters in each removed one.

    They minimise |w_i - sum_j alpha_j w_j|^2 + lambda_1 (mismatch of the offsets)^2 + lambda_2 sum_j (K_j
    alpha_j)^2 with K_j = (gamma_i / gamma_j) (var_j / var_i), up to the code's own way with the second term:
    where the outer product of its coefficients belongs, the sum of their squares is added to the diagonal.

    Args:
        rows: [units, ...], BatchNorm not folded in.
        affine: the BatchNorm of the writer, [units].
        kept: numbers of the kept units.
        removed: numbers of the removed units.

    Returns:
        [len(removed), len(kept)].
    """
    host = affine.select(kept)
    crossing = host.mean - host.variance * host.beta / host.gamma
    gram, targets = rows[kept] @ rows[kept].T, rows[removed] @ rows[kept].T
    shares = []
    for unit, target in zip(removed, targets, strict=True):
        own = affine.select(unit)
        scale = own.gamma / own.variance
        factor = (own.gamma / host.gamma) * (host.variance / own.variance)
        diagonal = OFFSET_PENALTY * scale**2 * crossing.square().sum() + SHARE_PENALTY * factor**2
        pull = OFFSET_PENALTY * scale * (scale * own.mean - own.beta) * crossing
        shares.append(torch.linalg.solve(gram + torch.diag(diagonal), target + pull))
    return torch.stack(shares)


def bias_spread_shares(rows: Tensor, bias: Tensor, kept: Tensor, removed: Tensor) -> Tensor:
    """Return the shares without BatchNorm: ridge with an intercept, the bias [units] as one more weight."""
    rows = torch.cat([rows, bias[:, None]], dim=1)
    rows = rows - rows.mean(1, keepdim=True)
    gram = rows[kept] @ rows[kept].T + SHARE_PENALTY * torch.eye(len(kept), dtype=rows.dtype)
    return torch.linalg.solve(gram, rows[kept] @ rows[removed].T).T
