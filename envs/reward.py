"""Pure functions from outputs on the reward images to the parts of a reward."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pruning.evaluation import accuracy, divergence

Goal = Literal["divergence", "accuracy"]

UNIFORM_TOTAL = math.exp(-1.0)  # the reward of the uniform plan
LEAST_REFERENCE = 1e-3  # below it uniform pruning does no harm, and shares of its loss are noise


@dataclass(frozen=True)
class Score:
    """What a compressed network does on the reward images, whatever the budget it was made for."""

    accuracy: float  # 0 to 1
    divergence: float  # from the dense network, nats per image
    estimated: bool = False  # from the first images alone
    first_loss: float | None = None  # on the first images, where the others followed

    @classmethod
    def from_parts(cls, parts: Mapping[str, float]) -> Score:
        """Build the score from what `RewardTerms.to_dict` returned."""
        return cls(parts["accuracy"], parts["divergence"], bool(parts["estimated"]), parts.get("first_loss"))

    def loss(self, goal: Goal) -> float:
        """Return what a plan is to keep small: the divergence, or the share of wrong answers."""
        return self.divergence if goal == "divergence" else 1.0 - self.accuracy


@dataclass(frozen=True)
class RewardTerms:
    """The parts of an episode's reward; the budget is met by construction and takes no part."""

    score: Score
    reference: float  # the loss of the uniform plan within the same budget
    goal: Goal = "divergence"

    @property
    def share(self) -> float:
        """The loss as a share of what uniform pruning loses, so that plans of different budgets compare."""
        return self.score.loss(self.goal) / max(self.reference, LEAST_REFERENCE)

    @property
    def total(self) -> float:
        """What the agent maximises, in [0, 1]: exp(-loss / reference); 1 as dense, 0.37 as uniform pruning.

        A share of what uniform pruning loses, since losses differ a hundredfold between networks and budgets.
        The loss on images is the divergence: finer than the accuracy of a few hundred, which trained networks
        tend to know by heart; on ResNet-20 at half the MACs it led to plans of higher test accuracy. On
        synthetic images it is the disagreement with the dense network: over 60 random plans its rank
        correlation with accuracy on real images is 0.96, the divergence's 0.94 and 0.92 (`benchmark reward`).
        """
        return math.exp(-self.share)

    def to_dict(self) -> dict[str, float]:
        """Return the parts and their total as plain data."""
        parts = {
            "accuracy": self.score.accuracy,
            "divergence": self.score.divergence,
            "reference": self.reference,
            "estimated": float(self.score.estimated),
        }
        if self.score.first_loss is not None:
            parts["first_loss"] = self.score.first_loss
        return {**parts, "total": self.total}


def score_outputs(logits: Tensor, dense_logits: Tensor, labels: Tensor) -> Score:
    """Score a compressed network's outputs: [images, classes], and labels [images]."""
    return Score(accuracy(logits, labels), divergence(logits, dense_logits))
