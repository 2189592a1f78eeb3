"""The interface of searches, which propose whole episodes and learn from their rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Actions: TypeAlias = NDArray[np.float32]  # [sites, techniques], each in [-1, 1]
Vector: TypeAlias = NDArray[np.float64]  # [size], the numbers of a `Space`


class Search(Protocol):
    """A search, which proposes generations of episodes. It starts centred on zero, the even plan."""

    def propose(self) -> list[Actions]:
        """Return a generation of episodes that may all be evaluated at once."""

    def tell(self, proposals: Sequence[Actions], totals: Sequence[float]) -> None:
        """Learn from the whole last generation, in order; a higher total is better."""

    def answer(self) -> Actions | None:
        """Return the search's own final episode, or None if that is the best one evaluated."""


@dataclass(frozen=True, eq=False)
class Space:
    """The search space: the entries of an episode's actions that have an effect, technique by technique."""

    admitted: NDArray[np.bool_]  # whether an entry has an effect: [sites, techniques]

    @property
    def size(self) -> int:
        """Number of dimensions."""
        return int(self.admitted.sum())

    def actions(self, vector: Vector) -> Actions:
        """Return the episode that `vector` encodes, clipped to the box; other entries compress nothing."""
        actions = np.full(self.admitted.shape[::-1], -1.0, dtype=np.float32)
        actions[::-1][self.admitted.T[::-1]] = vector  # widths before gates
        return actions.T.clip(-1.0, 1.0)

    def vector(self, actions: Actions) -> Vector:
        """Return the vector that encodes an episode, the inverse of `actions` within the box."""
        return actions.T[::-1][self.admitted.T[::-1]].astype(np.float64)
