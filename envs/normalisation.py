"""Features as standard scores within a network, which mean the same in any other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prunegym.envs.observation import CONTEXT, LayerObservation

NORMALISER = "standard scores within the network, clipped at 1"
MIN_SCORE_STD = 0.02  # of a feature that is to be stretched; one that hardly varies is only centred


class ObservationNormalizer:
    """How far each feature lies from its mean over an episode of uniform pruning, in standard deviations.

    Clipped at 1: in a network of many blocks a trunk lies three deviations from the rest, in a small one a
    single one, and a policy that learned on these must not be carried away by those. *Measured*, policies
    linear in the scores, learned on ResNet-20 and 32, on the whole of ResNet-56 at half the MACs, where
    uniform pruning keeps 83.6: 86.2 clipped at 1, 83.0 at 1.5, 74.4 at 2, 63.0 at 3. Features of the
    episode, CONTEXT, which say the same of every group, are stretched from [0, 1] to [-1, 1] instead.

    Args:
        uniform: features of the groups in that episode, [groups, F].
    """

    def __init__(self, uniform: NDArray[np.float32]) -> None:
        spread = uniform.std(axis=0)
        context = np.isin(LayerObservation._fields, CONTEXT)
        self._mean = np.where(context, 0.5, uniform.mean(axis=0))
        self._deviation = np.where(context, 0.5, np.where(spread < MIN_SCORE_STD, 1.0, spread))

    def normalize(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the scores, float32 [F] in [-1, 1], of a group's features, [F]."""
        return ((features - self._mean) / self._deviation).clip(-1.0, 1.0).astype(np.float32)
