"""The history of a run: the number of episodes, the best of them, and all ratios for the heat maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunegym.agents.rollout import EpisodeResult


class EpisodeHistory:
    """The episodes of one run, in order; a checkpoint keeps it as JSON.

    Args:
        groups: names of the groups of all networks of the run; an episode decides those of one network.
    """

    def __init__(self, groups: Sequence[str]) -> None:
        self.groups = tuple(groups)
        self.steps = 0  # environment steps of those episodes
        self.best: EpisodeResult | None = None  # the highest reward on all reward images, estimates left out
        self.best_episode = 0  # index of the best episode, counted from 1
        self._ratios: list[dict[str, list[float]]] = []

    @property
    def episodes(self) -> int:
        """Number of finished episodes."""
        return len(self._ratios)

    @property
    def ratios(self) -> NDArray[np.float64]:
        """Static and runtime ratios, [episodes, groups, 2]; NaN where an episode did not decide a group."""
        missing = [np.nan, np.nan]
        rows = [[entry.get(group, missing) for group in self.groups] for entry in self._ratios]
        return np.array(rows, dtype=np.float64).reshape(-1, len(self.groups), 2)

    def add(self, result: EpisodeResult) -> None:
        """Add an episode; of equal rewards the earlier one stays the best."""
        self._ratios.append(
            {
                group: [decision["static_ratio"], decision["runtime_ratio"]]
                for group, decision in result.plan.items()
            }
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
