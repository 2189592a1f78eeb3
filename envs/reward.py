"""The parts of a reward, and what becomes of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

UNIFORM_TOTAL = math.exp(-1.0)  # the reward of the uniform plan
MIN_REFERENCE_LOSS = 1e-3  # below it uniform pruning does no harm, and shares of its loss are noise
DENSE_SCALE = 0.4  # the slope of exp(-x) where a plan is as good as uniform


@dataclass(frozen=True)
class Score:
    """What a compressed network does, whatever the budget it was made for."""

    loss: float  # what a plan is to keep small, by what the objective goes by
    accuracy: float | None = None  # 0 to 1, on the reward images
    divergence: float | None = None  # from the dense network on them, nats per image
    score: float | None = None  # by the user's function, where that is the objective
    estimated: bool = False  # from the first images alone
    first_loss: float | None = None  # on the first images, where the others followed

    @classmethod
    def from_parts(cls, parts: Mapping[str, Any]) -> Score:
        """Build the score from what `RewardTerms.to_dict` returned."""
        known = {name: parts[name] for name in cls.__dataclass_fields__ if name in parts}
        return cls(**{**known, "estimated": bool(parts["estimated"])})


@dataclass(frozen=True)
class RewardTerms:
    """The parts of an episode's reward; the budget is met by construction and takes no part."""

    score: Score
    reference: float  # the loss of the uniform plan within the same budget
    expected: float | None = None  # the share of it that the plan was expected to lose, see `ExpectedLosses`

    @property
    def share(self) -> float:
        """The loss as a share of what uniform pruning loses, so that plans of different budgets compare."""
        return self.score.loss / max(self.reference, MIN_REFERENCE_LOSS)

    @property
    def total(self) -> float:
        """What the agent maximises, in [0, 1]: exp(-loss / reference); 1 as dense, 0.37 as uniform pruning.

        A share of what uniform pruning loses, since losses differ a hundredfold between networks and budgets.
        See `ImageObjective` and `FunctionObjective` for the losses.
        """
        return math.exp(-self.share)

    def to_dict(self) -> dict[str, float]:
        """Return the parts and their total as plain data."""
        parts = {name: float(value) for name, value in asdict(self.score).items() if value is not None}
        expected = {} if self.expected is None else {"expected": self.expected}
        return {**parts, "reference": self.reference, **expected, "total": self.total}


def step_reward(expected: float) -> float:
    """Return the dense reward, in [-DENSE_SCALE, 0], for a group of which this share of the loss is expected.

    The environment takes the sum back at the end of the episode, so that no policy gains or loses by it; it
    only says sooner which step did what.
    """
    return -DENSE_SCALE * min(1.0, expected)
