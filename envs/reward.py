"""The reward of a finished plan, and its parts."""

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
    """Score of a compressed network; it does not depend on the budget that the network was made for."""

    loss: float  # to be kept small; which loss it is depends on the objective
    accuracy: float | None = None  # 0 to 1, on the reward images
    divergence: float | None = None  # from the dense network on them, nats per image
    score: float | None = None  # of the user's function, where that is the objective
    estimated: bool = False  # estimated from the first images alone
    first_loss: float | None = None  # on the first images, where the network was scored on all

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
        """The loss relative to the uniform plan's, so that plans of different budgets compare."""
        return self.score.loss / max(self.reference, MIN_REFERENCE_LOSS)

    @property
    def total(self) -> float:
        """The reward that the agent maximises, in [0, 1]: exp(-loss / reference).

        A plan as good as the dense network gets 1, the uniform plan 0.37. Losses are relative to the uniform
        plan's since they differ a hundredfold between networks and budgets. See `ImageObjective` and
        `FunctionObjective` for the losses.
        """
        return math.exp(-self.share)

    def to_dict(self) -> dict[str, float]:
        """Return the parts and their total as plain data."""
        parts = {name: float(value) for name, value in asdict(self.score).items() if value is not None}
        expected = {} if self.expected is None else {"expected": self.expected}
        return {**parts, "reference": self.reference, **expected, "total": self.total}


def step_reward(expected: float) -> float:
    """Return the dense reward of one step, in [-DENSE_SCALE, 0].

    The environment takes the sum back at the end of the episode, so that the return of an episode stays the
    same; dense rewards only tell sooner which step caused a loss.

    Args:
        expected: the loss expected of the group just decided, as a share of the uniform plan's loss.
    """
    return -DENSE_SCALE * min(1.0, expected)
