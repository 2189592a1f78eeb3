"""Noise, made to look like features by the BatchNorms: no optimisation, seconds."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunegym.pruning.calibration.statistics import CalibrationInputs
from prunegym.pruning.calibration.synthesis.records import SYNTHESES, can_synthesise, gaussian_images
from prunegym.pruning.graph import find_groups
from prunegym.pruning.graph.interpreter import Lockstep
from prunegym.pruning.graph.tracing import BATCH_NORMS

BATCH_SIZE = 128


@SYNTHESES.register("noise")
def noise(model: nn.Module, input_shape: Sequence[int], *, seed: int, progress: bool) -> CalibrationInputs:
    """Send Gaussian noise through the network with each BatchNorm set to the statistics that it then sees.

    So the output of every BatchNorm has the mean beta and the variance gamma^2 that it had in training, as in
    layer-wise synthesis (Horton et al. 2022), while the correlations between channels are those that all the
    layers before it induce. Measured: docs/decisions.md, D25.
    """
    images = gaussian_images(input_shape, seed=seed)
    reference = restandardised(model, images) if can_synthesise(model) else model
    return CalibrationInputs(images.split(BATCH_SIZE), reference)


@SYNTHESES.register("layerwise")
def layerwise(
    model: nn.Module, input_shape: Sequence[int], *, seed: int, progress: bool
) -> CalibrationInputs:
    """Draw each layer's input from the BatchNorms that feed it, and push it through its writer.

    See docs/decisions.md, D4; Horton et al. 2022; Lockstep. Without BatchNorm, noise.
    """
    images = gaussian_images(input_shape, seed=seed)
    if not can_synthesise(model):
        return CalibrationInputs(images.split(BATCH_SIZE), model)
    reference = restandardised(model, images, layerwise=seed)
    return CalibrationInputs(images.split(BATCH_SIZE), reference, layerwise=seed)


@torch.no_grad()
def restandardised(model: nn.Module, images: Tensor, *, layerwise: int | None = None) -> nn.Module:
    """Return a copy whose BatchNorms hold the statistics of these images, in evaluation mode.

    One batch of all images: after batches, the later layers would see averages of other distributions.
    """
    copied = copy.deepcopy(model).eval()
    for module in copied.modules():
        if isinstance(module, BATCH_NORMS) and module.track_running_stats:
            module.momentum = 1.0  # the statistics before are forgotten
            module.train()
    images = images.to(next(copied.parameters()).device)
    if layerwise is None:
        copied(images)
    else:
        for _ in Lockstep(find_groups(model, images.shape[1:]), [copied], images, layerwise=layerwise):
            pass
    for module, original in zip(copied.modules(), model.modules(), strict=True):
        if isinstance(module, BATCH_NORMS):
            module.momentum = original.momentum  # type: ignore[assignment]
    return copied.eval()
