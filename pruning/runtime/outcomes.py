"""Results of a network with per-input ratios on images, and the calibration of its mean cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunegym.pruning.data import Images
from prunegym.pruning.modes import evaluating
from prunegym.pruning.runtime.per_input import per_input_policy_of

OFFSET_TOLERANCE = 1e-3  # of the offset, in units of an action


@dataclass(frozen=True, eq=False)
class InputOutcomes:
    """Logits, cost and runtime ratios of each image."""

    logits: Tensor  # [N, classes]
    labels: Tensor  # [N]
    macs: NDArray[np.float64]  # [N], shares of the dense network's
    ratios: NDArray[np.float64]  # [N, gates], runtime ratios


@torch.inference_mode()
def input_outcomes(model: nn.Module, images: Images) -> InputOutcomes:
    """Run a network with per-input ratios on images."""
    ratios, device = per_input_policy_of(model), next(model.parameters()).device
    logits, macs, skipped = [], [], []
    with evaluating(model):
        for batch, _ in images.batches():
            logits.append(model(batch.to(device)))
            macs.append(ratios.cost())
            skipped.append(ratios.ratios())
    return InputOutcomes(
        torch.cat(logits), images.labels.to(device), np.concatenate(macs), np.concatenate(skipped)
    )


def keep_budget_(model: nn.Module, images: Images, share: float) -> float:
    """Set the offset of a network's per-input ratios so that images cost a budget on average, in place.

    Args:
        model: the network.
        images: images like those it will be used on; no label is used.
        share: the share of the dense multiply-adds that may remain on average.

    Returns:
        The share that remains on these images: the largest found that is not above the budget, or else the
        smallest possible.
    """
    ratios = per_input_policy_of(model)
    last = ratios.policy[-1]
    assert isinstance(last, nn.Linear)
    # outweighs any output of the policy, whose last layer reads values in [-1, 1] (features or tanh): at this
    # end as many units are skipped as can be, at the other end all run
    high = 1 + float(last.weight.abs().sum() + last.bias.abs().sum())
    low = -high
    while high - low > OFFSET_TOLERANCE:
        middle = (low + high) / 2
        ratios.offset.fill_(middle)
        mean = float(input_outcomes(model, images).macs.mean())
        low, high = (low, middle) if mean <= share else (middle, high)
    ratios.offset.fill_(high)
    return float(input_outcomes(model, images).macs.mean())
