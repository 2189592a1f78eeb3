"""Splits of synthetic images, where there are no real ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from prunegym.pruning.calibration.synthesis.distilled import distilled_images
from prunegym.pruning.calibration.synthesis.records import gaussian_images, has_batch_norm
from prunegym.pruning.data import Images
from prunegym.pruning.metrics import predictions
from prunegym.pruning.networks.registry import NetworkSpec

CALIBRATION_IMAGES_PER_IMAGE = 2  # half as many images in each set as calibration has


@dataclass(frozen=True, eq=False)
class SyntheticSplits:
    """Images distilled from a network's weights and labelled by it; each set is made when it is asked for.

    The share of right answers is agreement with the dense network. Over random plans it ranks as accuracy on
    real images does: see `prunegym benchmark reward`.
    """

    model: nn.Module
    network: NetworkSpec
    seed: int
    progress: bool
    real_test: Images | None = None

    @cached_property
    def reward(self) -> Images:
        """The images that policies are rewarded on."""
        return self._images(1)

    @cached_property
    def validation(self) -> Images:
        """The images that choose between candidates."""
        return self._images(2)

    @cached_property
    def test(self) -> Images:
        """The images that results are reported on: real ones if there are some."""
        return self.real_test or self._images(3)

    def _images(self, number: int) -> Images:
        # seeds of their own, far from those of other runs, so that no two sets begin from the same noise
        seed = number * 1_000_003 + self.seed
        images = gaussian_images(self.network.input_shape, seed=seed)
        images = images[: -(-len(images) // CALIBRATION_IMAGES_PER_IMAGE)]
        if has_batch_norm(self.model):
            images = distilled_images(self.model, images, seed=seed, progress=self.progress)
        return answered(self.model, images)


def answered(model: nn.Module, images: Tensor) -> Images:
    """Return images [N, C, H, W] labelled with a network's answers."""
    answers = predictions(model, [(images, torch.zeros(len(images)))])[0].argmax(1).cpu()
    return Images(images, answers, labelled=False)
