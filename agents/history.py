"""The history of a run: the number of episodes, the best of them, and all plans for the heat maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prunegym.agents.rollout import EpisodeResult
from prunegym.envs.results import PlainPlan
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.techniques import check_amounts


class EpisodeHistory:
    """The episodes of one run, in order; a checkpoint keeps it as JSON.

    Args:
        sites: names of the sites of all networks of the run; an episode decides those of one network.
    """

    def __init__(self, sites: Sequence[str]) -> None:
        self.sites = tuple(sites)
        self.steps = 0  # environment steps of those episodes
        self.best: EpisodeResult | None = None  # the highest reward on all reward images, estimates left out
        self.best_episode = 0  # index of the best episode, counted from 1
        self.plans: list[PlainPlan] = []

    @property
    def episodes(self) -> int:
        """Number of finished episodes."""
        return len(self.plans)

    def add(self, result: EpisodeResult) -> None:
        """Add an episode; of equal rewards the earlier one stays the best."""
        self.plans.append(result.plan)
        self.steps += len(result.plan)
        if not result.estimated and (self.best is None or result.total > self.best.total):
            self.best = result
            self.best_episode = self.episodes

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, fit for JSON."""
        return {
            "sites": list(self.sites),
            "steps": self.steps,
            "best": self.best and self.best.to_dict(),
            "best_episode": self.best_episode,
            "plans": list(self.plans),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EpisodeHistory:
        """Build a history from what `to_dict` returned."""
        history = cls(data["sites"])
        history.steps = data["steps"]
        if data["best"] is not None:
            history.best = EpisodeResult.from_dict(data["best"])
            check_amounts(CompressionPlan(history.best.plan))
        history.best_episode = data["best_episode"]
        history.plans = [CompressionPlan(plan).to_dict() for plan in data["plans"]]
        return history
