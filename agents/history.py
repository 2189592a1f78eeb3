"""What a run has seen so far: how many episodes, the best of them, and every ratio for the heat maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunegym.agents.rollout import EpisodeResult


class EpisodeHistory:
    """The episodes of one run, in order; it goes to JSON and back with a checkpoint.

    Args:
        groups: of all networks of the run; an episode decides those of one.
    """

    def __init__(self, groups: Sequence[str]) -> None:
        self.groups = tuple(groups)
        self.steps = 0  # environment steps that those episodes took
        self.best: EpisodeResult | None = None  # among those that met all reward images
        self.best_episode = 0  # counted from 1
        self._ratios: list[dict[str, list[float]]] = []

    @property
    def episodes(self) -> int:
        """How many episodes have ended."""
        return len(self._ratios)

    @property
    def ratios(self) -> NDArray[np.float64]:
        """Static and runtime ratio of each group in each episode, [episodes, groups, 2]; NaN for none."""
        missing = [np.nan, np.nan]
        rows = [[entry.get(group, missing) for group in self.groups] for entry in self._ratios]
        return np.array(rows, dtype=np.float64).reshape(-1, len(self.groups), 2)

    def add(self, result: EpisodeResult) -> None:
        """Count one more episode; of equal rewards the earlier stays the best."""
        self._ratios.append(
            {group: [one["static_ratio"], one["runtime_ratio"]] for group, one in result.plan.items()}
        )
        self.steps += len(result.plan)
        if not result.estimated and (self.best is None or result.total > self.best.total):
            self.best = result
            self.best_episode = self.episodes

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, fit for JSON."""
        return {
            "groups": list(self.groups),
            "steps": self.steps,
            "best": self.best and self.best.to_dict(),
            "best_episode": self.best_episode,
            "ratios": self._ratios,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EpisodeHistory:
        """Build a history from what `to_dict` returned."""
        history = cls(data["groups"])
        history.steps = data["steps"]
        history.best = data["best"] and EpisodeResult.from_dict(data["best"])
        history.best_episode = data["best_episode"]
        history._ratios = data["ratios"]
        return history
