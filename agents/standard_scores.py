"""Observations as standard scores, which tell groups apart that look much the same in raw features."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

FURTHEST = 3.0  # standard deviations, where scores are clipped
LEAST_DEVIATION = 0.02  # of a feature that is to be stretched; one that hardly varies is only centred


class StandardScores(BaseFeaturesExtractor):
    """How far each feature lies from its mean, in standard deviations; both travel with the policy's weights.

    Args:
        observation_space: of a vector.
        usual: observations to take mean and deviation from, [observations, F]; without, none are taken.
    """

    mean: Tensor
    scale: Tensor  # one over the deviation, so that no file can have it divide by zero

    def __init__(self, observation_space: spaces.Box, usual: NDArray[np.floating] | None = None) -> None:
        size = observation_space.shape[0]
        super().__init__(observation_space, size)
        mean, deviation = np.zeros(size), np.ones(size)
        if usual is not None:
            mean, spread = np.mean(usual, axis=0), np.std(usual, axis=0)
            deviation = np.where(spread < LEAST_DEVIATION, 1.0, spread)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(1.0 / deviation, dtype=torch.float32))

    def forward(self, observations: Tensor) -> Tensor:
        """Return the scores, of the shape of `observations`, in [-FURTHEST, FURTHEST]."""
        return ((observations - self.mean) * self.scale).clamp(-FURTHEST, FURTHEST)


def as_standard_scores(usual: NDArray[np.floating] | None = None) -> dict[str, Any]:
    """Return the arguments that have a Stable-Baselines3 policy see standard scores; see StandardScores."""
    return {"features_extractor_class": StandardScores, "features_extractor_kwargs": {"usual": usual}}
