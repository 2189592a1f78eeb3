"""The protocol of a synthesis. A registry: add one function to add a way to calibrate without data."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from prunegym.pruning.calibration.statistics import CalibrationInputs
from prunegym.pruning.graph.tracing import BATCH_NORMS
from prunegym.pruning.registry import Registry

logger = logging.getLogger(__name__)

PIXELS = 2**18  # of all images of a synthetic set together: 256 images of 32 x 32
MIN_IMAGES = 32  # images, however large
MAX_IMAGES = 256


class Synthesis(Protocol):
    """Makes calibration inputs for a trained network."""

    def __call__(
        self, model: nn.Module, input_shape: Sequence[int], *, seed: int, progress: bool
    ) -> CalibrationInputs:
        """Return inputs that fit `model`; it is left as it was.

        Args:
            model: the trained network; the statistics of its BatchNorms describe its training images.
            input_shape: the shape of one image.
            seed: the seed of all random draws; the same seed gives the same inputs.
            progress: show a bar on stderr, if that takes long and stderr is a terminal.
        """
        ...


SYNTHESES: Registry[Synthesis] = Registry("calibration")


def gaussian_images(input_shape: Sequence[int], *, seed: int) -> Tensor:
    """Return images of independent N(0, 1) pixels, as normalised images have: [N, C, H, W]."""
    count = min(MAX_IMAGES, max(MIN_IMAGES, PIXELS // torch.Size(input_shape[1:]).numel()))
    return torch.randn((count, *input_shape), generator=torch.Generator().manual_seed(seed))


def has_batch_norm(model: nn.Module) -> bool:
    """Return whether the network holds statistics of its training images, in BatchNorms."""
    return any(isinstance(module, BATCH_NORMS) and module.track_running_stats for module in model.modules())


def can_synthesise(model: nn.Module) -> bool:
    """Return `has_batch_norm`; warn if there is none that plain noise is used instead."""
    if has_batch_norm(model):
        return True
    logger.warning(
        "%s has no BatchNorm, whose statistics would tell of its training images: it is calibrated on plain "
        "Gaussian noise, which is worse; give images with --data if there are some",
        type(model).__name__,
    )
    return False
