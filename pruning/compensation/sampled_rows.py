"""Inputs and outputs of a layer at sampled positions of many images, and least squares on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prunegym.pruning.calibration.moments import damped
from prunegym.pruning.calibration.statistics import CalibrationInputs
from prunegym.pruning.calibration.unfolding import sampled_positions, unfolded

PIXELS = 2**18  # of all images that take part, whose features of a layer are held at once
MIN_IMAGES = 32  # images, however large
RIDGE = 1e-2  # of the mean input variance: inputs are noisier than those of the dense network


def first_images(inputs: CalibrationInputs, *, pixels: int = PIXELS) -> Tensor:
    """Return the first calibration images, as many as a network can hold at once, on the network's device."""
    count = max(MIN_IMAGES, pixels // torch.Size(inputs.shape[1:]).numel())
    return torch.cat(inputs.batches)[:count].to(next(inputs.reference.parameters()).device)


def input_rows(module: Any, x: Tensor, *, positions: int | None = None) -> Tensor:
    """Return [conv groups, rows, dimensions], by image and position; the same places at every call."""
    return unfolded(module, x, torch.Generator().manual_seed(0), positions=positions)


def output_rows(module: Any, y: Tensor, *, positions: int | None = None) -> Tensor:
    """Return a layer's output at the places of `input_rows`: [conv groups, rows, cout / groups]."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(module, nn.Linear):
        flat = y.flatten(1, -2) if y.dim() > 2 else y[:, None]
    else:
        flat = y.flatten(2).mT
    rows = flat[:, sampled_positions(flat.size(1), generator, positions)].flatten(0, 1)
    return rows.unflatten(1, (getattr(module, "groups", 1), -1)).movedim(1, 0)


def fit_change(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """Fit residual = change x + shift, with a penalty on the change.

    Args:
        x: [conv groups, rows, dimensions].
        residual: [conv groups, rows, cout / groups].

    Returns:
        change [conv groups, cout / groups, dimensions] and shift [conv groups, cout / groups], float64.
    """
    mean, target = x.mean(1, keepdim=True), residual.mean(1, keepdim=True)
    centred, wanted, count = x - mean, residual - target, x.size(1)
    penalty = RIDGE * centred.double().square().mean((1, 2))
    if count < x.size(2):  # fewer rows than dimensions: solved in the space of rows
        inner = (centred @ centred.mT).double() / count
        solved = _solve(inner, wanted.double(), penalty)
        change = solved.mT @ centred.double() / count
    else:
        inner = (centred.mT @ centred).double() / count
        change = _solve(inner, (centred.mT @ wanted).double() / count, penalty).mT
    shift = target.double() - mean.double() @ change.mT
    return change, shift[:, 0]


def _solve(inner: Tensor, right: Tensor, penalty: Tensor) -> Tensor:
    """Return (inner + penalty I)^-1 right, for each conv group."""
    solved = [
        torch.cholesky_solve(target, torch.linalg.cholesky(damped(matrix, weight)))
        for matrix, target, weight in zip(inner, right, penalty, strict=True)
    ]
    return torch.stack(solved)
