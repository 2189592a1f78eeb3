"""Stable-Baselines3 callbacks that count episodes and keep a run that can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stable_baselines3.common.callbacks import BaseCallback

from prunegym.agents.history import EpisodeHistory
from prunegym.agents.rollout import EpisodeResult


class EpisodeCallback(BaseCallback):
    """Enters each finished episode into the history, tells the listeners, and ends the run on time."""

    def __init__(
        self,
        history: EpisodeHistory,
        listeners: Sequence[Callable[[EpisodeResult], None]],
        *,
        last: int,
    ) -> None:
        super().__init__()
        self._history = history
        self._listeners = listeners
        self._last = last  # episodes to learn from

    def announce(self, result: EpisodeResult) -> None:
        """Count a finished episode; the history knows it before the first listener does."""
        self._history.add(result)
        for listener in self._listeners:
            listener(result)

    def _on_step(self) -> bool:
        # Stops one step into an episode too many, which evaluates nothing. Stopping at the last step
        # itself would lose the update on a rollout that this very step completes.
        if self._history.episodes >= self._last:
            return False
        for info in self.locals["infos"]:
            if "episode_result" in info:
                self.announce(EpisodeResult.from_dict(info["episode_result"]))
        return True


class CheckpointCallback(BaseCallback):
    """Calls `save` after an update, when the next rollout is about to start, every EPISODES or so."""

    EPISODES = 8

    def __init__(self, history: EpisodeHistory, save: Callable[[], None]) -> None:
        super().__init__()
        self._history = history
        self._save = save
        self._saved = history.episodes

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        # Not at a rollout's end, where Stable-Baselines3 has collected it but not learned from it yet.
        if self._history.episodes - self._saved >= self.EPISODES:
            self._save()
            self._saved = self._history.episodes
