"""The interface of searches, which propose whole episodes and learn from their rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from prunegym.envs.action import RUNTIME, STATIC

Actions: TypeAlias = NDArray[np.float32]  # [groups, 2], runtime and static, each in [-1, 1]
Vector: TypeAlias = NDArray[np.float64]  # [size], the numbers of a `Space`


class Search(Protocol):
    """A search, which proposes generations of episodes. It starts centred on zero, the uniform plan."""

    def propose(self) -> list[Actions]:
        """Return a generation of episodes that may all be evaluated at once."""

    def tell(self, proposals: Sequence[Actions], totals: Sequence[float]) -> None:
        """Learn from the whole last generation, in order; a higher total is better."""

    def answer(self) -> Actions | None:
        """Return the search's own final episode, or None if that is the best one evaluated."""


@dataclass(frozen=True)
class Space:
    """The search space: every group's static action, and the runtime actions of the gated groups."""

    gated: tuple[bool, ...]  # for each group, True if its runtime action has an effect

    @property
    def size(self) -> int:
        """Number of dimensions."""
        return len(self.gated) + sum(self.gated)

    def actions(self, vector: Vector) -> Actions:
        """Return the episode that `vector` encodes, clipped to the box; without a gate nothing is skipped."""
        actions = np.full((len(self.gated), 2), -1.0, dtype=np.float32)
        actions[:, STATIC] = vector[: len(self.gated)]
        actions[list(self.gated), RUNTIME] = vector[len(self.gated) :]
        return actions.clip(-1.0, 1.0)

    def vector(self, actions: Actions) -> Vector:
        """Return the vector that encodes an episode, the inverse of `actions` within the box."""
        parts = [actions[:, STATIC], actions[list(self.gated), RUNTIME]]
        return np.concatenate(parts).astype(np.float64)
