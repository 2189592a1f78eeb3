"""Ridge regression of the removed inputs on the kept ones, from cached moments; no forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prunegym.pruning.calibration.moments import RIDGE, Moments
from prunegym.pruning.compensation.gated import refit_gated_
from prunegym.pruning.compensation.readers import kept_dimensions, shift_output_
from prunegym.pruning.compensation.records import COMPENSATIONS, Compensation, PlannedCut


def least_squares_(model: nn.Module, planned: PlannedCut) -> None:
    """Refit each reader on its kept inputs to the dense layer's output (see docs/decisions.md, D3)."""
    for cut in planned.cuts:
        moments = planned.calibration.moments.get(cut.owner)
        if cut.axis == "in" and moments is not None:
            layer: Any = model.get_submodule(cut.owner)
            dense = layer.weight.detach()
            refitted = refit(dense, moments, torch.tensor(cut.kept))
            shift = output_mean(dense, moments) - output_mean(refitted, moments)
            layer.weight.data.copy_(refitted)
            shift_output_(model, planned.graph.layers[cut.owner], shift)


COMPENSATIONS.register("least-squares")(Compensation(least_squares_, shifts_bias=True, gated_=refit_gated_))


def refit(weight: Tensor, moments: Moments, kept: Tensor, *, ridge: float = RIDGE) -> Tensor:
    """Return the reader's weight with its removed inputs expressed through the kept ones.

    W_S = W[:,S] + W[:,R] C[R,S] (C[S,S] + lambda I)^-1 for the kept inputs S and the removed R, in whole
    kernel blocks; zero on R. Ridge on the change, so that on its own data the error is never above dropping.

    Args:
        weight: [cout, cin / conv groups, *kernel]; it is not changed.
        moments: moments of the layer's unfolded input in the dense network.
        kept: kept input channels, of all conv groups, ascending.
        ridge: lambda, as a share of the mean input variance.
    """
    # [groups, cout / groups, dims]
    rows = weight.double().flatten(1).unflatten(0, (len(moments.covariances), -1))
    cin = weight.size(1)
    block = rows.size(2) // cin
    is_kept = kept_dimensions(kept, cin, block).to(rows.device)
    kept_dims, removed_dims = is_kept.nonzero()[:, 0], (~is_kept).nonzero()[:, 0]
    refitted = torch.zeros_like(rows)
    for i, covariance in enumerate(moments.covariances):
        change = rows[i][:, removed_dims] @ covariance.regression(removed_dims, kept_dims, ridge=ridge)
        refitted[i][:, kept_dims] = rows[i][:, kept_dims] + change
    return refitted.reshape(weight.shape).to(weight.dtype)


def output_mean(weight: Tensor, moments: Moments) -> Tensor:
    """Return W mu, the mean of the layer's output without its bias: [cout], float64."""
    rows = weight.double().flatten(1).unflatten(0, (len(moments.covariances), -1))
    return (rows @ moments.mean[:, :, None]).flatten()
