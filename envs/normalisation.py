"""Normalisation of observations: standard scores within a network, which mean the same in any other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prunegym.envs.observation import context_features

NORMALISER = "standard scores within the network, clipped at 1"
MIN_SCORE_STD = 0.02  # of a feature that is to be stretched; one that hardly varies is only centred


class ObservationNormalizer:
    """Normalises features to standard scores: deviations from their mean over an episode of uniform pruning.

    Scores are clipped at 1, which keeps a policy trained on shallow networks stable on deep ones, where a
    residual stream lies three standard deviations out (docs/decisions.md, D42). Features of the context, see
    `context_features`, are stretched from [0, 1] to [-1, 1] instead.

    Args:
        names: names of the features, F of them.
        uniform: features of the sites in that episode, [sites, F].
    """

    def __init__(self, names: Sequence[str], uniform: NDArray[np.float32]) -> None:
        spread = uniform.std(axis=0)
        context = context_features(names)
        self._mean = np.where(context, 0.5, uniform.mean(axis=0))
        self._deviation = np.where(context, 0.5, np.where(spread < MIN_SCORE_STD, 1.0, spread))

    def normalize(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the scores, float32 [F] in [-1, 1], of a site's features, [F]."""
        return ((features - self._mean) / self._deviation).clip(-1.0, 1.0).astype(np.float32)
