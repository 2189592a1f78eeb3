"""What came of inputs for each of which a network decided by itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pruning.data import Images
from pruning.modes import evaluating
from pruning.runtime.gates import gates_of
from pruning.runtime.per_input import InputRatios, input_ratios

STEPS = 12  # of the search for an offset: to a thousandth of its range


@dataclass(frozen=True, eq=False)
class InputOutcomes:
    """What a network said of images, and what each of them took."""

    logits: Tensor  # [N, classes]
    labels: Tensor  # [N]
    macs: NDArray[np.float64]  # [N], shares of the dense network's
    ratios: NDArray[np.float64]  # [N, gates], runtime ratios


@torch.inference_mode()
def input_outcomes(model: nn.Module, images: Images) -> InputOutcomes:
    """Run a network with per-input ratios on images."""
    ratios, device = ratios_of(model), next(model.parameters()).device
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
        images: like those it will meet; no label is used.
        share: of the dense multiply-adds that may remain on average.

    Returns:
        The share that remains on these images: the largest found that is not above the budget, or the least
        there is.
    """
    ratios = ratios_of(model)
    low, high = -2.0, 2.0  # all units run; as many as can be are skipped
    for _ in range(STEPS):
        ratios.offset.fill_((low + high) / 2)
        found = float(input_outcomes(model, images).macs.mean())
        low, high = (low, float(ratios.offset)) if found <= share else (float(ratios.offset), high)
    ratios.offset.fill_(high)
    return float(input_outcomes(model, images).macs.mean())


def ratios_of(model: nn.Module) -> InputRatios:
    """Return what decides for each input in a network where something does."""
    ratios = input_ratios(gates_of(model))
    assert ratios is not None
    return ratios
