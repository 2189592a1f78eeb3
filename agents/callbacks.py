"""Stable-Baselines3 callbacks that count episodes and keep a run that can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stable_baselines3.common.callbacks import BaseCallback

from agents.history import EpisodeHistory
from agents.rollout import EpisodeResult


class EpisodeCallback(BaseCallback):
    """Enters each finished episode into the history, tells the listeners, and ends the run on time."""

    def __init__(
        self,
        history: EpisodeHistory,
        listeners: Sequence[Callable[[EpisodeResult], None]],
        *,
        last_step: int,
    ) -> None:
        super().__init__()
        self._history = history
        self._listeners = listeners
        self.last_step = last_step

    def announce(self, result: EpisodeResult) -> None:
        """Count a finished episode; the history knows it before the first listener does."""
        self._history.add(result)
        for listener in self._listeners:
            listener(result)

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode_result" in info:
                self.announce(EpisodeResult.from_dict(info["episode_result"]))
        # Stops one step into an episode too many, which evaluates nothing. Stopping at the last step
        # itself would lose the update on a rollout that this very step completes.
        return self.num_timesteps <= self.last_step


class CheckpointCallback(BaseCallback):
    """Calls `save` after each update, when the next rollout is about to start."""

    def __init__(self, history: EpisodeHistory, save: Callable[[], None]) -> None:
        super().__init__()
        self._history = history
        self._save = save

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        # Not at a rollout's end, where Stable-Baselines3 has collected it but not learned from it yet.
        if self._history.episodes:
            self._save()
