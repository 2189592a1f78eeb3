"""What a search is: something that proposes whole episodes, and learns from how they ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from prunegym.envs.action import RUNTIME, STATIC

Actions: TypeAlias = NDArray[np.float32]  # [groups, 2], runtime and static, each in [-1, 1]
Vector: TypeAlias = NDArray[np.float64]  # [size], only what there is to choose


class Search(Protocol):
    """Proposes generations of episodes. Every search starts centred on zero, the uniform plan."""

    def propose(self) -> list[Actions]:
        """Return a generation: all may be evaluated at once, before any is told."""

    def tell(self, proposals: Sequence[Actions], totals: Sequence[float]) -> None:
        """Learn from the last generation, whole and in order; a higher total is better."""

    def answer(self) -> Actions | None:
        """Return what the search would decide now beyond the best plan seen, None if nothing."""


@dataclass(frozen=True)
class Space:
    """The numbers a search may choose: every group's static action, and the runtime action of gated groups.

    `gated` says for each group whether its runtime action has any effect.
    """

    gated: tuple[bool, ...]

    @property
    def size(self) -> int:
        """How many numbers there are to choose."""
        return len(self.gated) + sum(self.gated)

    def actions(self, vector: Vector) -> Actions:
        """Return the episode that `vector` stands for, clipped to the box; where no gate fits, none."""
        actions = np.full((len(self.gated), 2), -1.0, dtype=np.float32)
        actions[:, STATIC] = vector[: len(self.gated)]
        actions[list(self.gated), RUNTIME] = vector[len(self.gated) :]
        return actions.clip(-1.0, 1.0)

    def vector(self, actions: Actions) -> Vector:
        """Return what was chosen in `actions`, the inverse of `actions` within the box."""
        chosen = [actions[:, STATIC], actions[list(self.gated), RUNTIME]]
        return np.concatenate(chosen).astype(np.float64)
