"""Stable-Baselines3 callbacks that count episodes and save checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stable_baselines3.common.callbacks import BaseCallback

from prunegym.agents.history import EpisodeHistory
from prunegym.agents.rollout import EpisodeResult


class EpisodeCallback(BaseCallback):
    """Adds each finished episode to the history, calls the listeners, and ends learning after the last one.

    Args:
        history: the history of the run.
        listeners: functions called with the result of each finished episode.
        last: number of episodes, those in the history included, after which learning ends.
    """

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
        self._last = last

    def announce(self, result: EpisodeResult) -> None:
        """Add a finished episode to the history, then call the listeners."""
        self._history.add(result)
        for listener in self._listeners:
            listener(result)

    def _on_step(self) -> bool:
        # Stops after the first step of one more episode, which costs no evaluation. Stopping at the last
        # step of the last episode would lose the update on a rollout that this step completes.
        if self._history.episodes >= self._last:
            return False
        for info in self.locals["infos"]:
            if "episode_result" in info:
                self.announce(EpisodeResult.from_dict(info["episode_result"]))
        return True


class CheckpointCallback(BaseCallback):
    """Saves a checkpoint after an update, before the next rollout starts, about every EPISODES episodes.

    Args:
        history: the history of the run.
        save: writes the checkpoint.
    """

    EPISODES = 8

    def __init__(self, history: EpisodeHistory, save: Callable[[], None]) -> None:
        super().__init__()
        self._history = history
        self._save = save
        self._saved = history.episodes

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        # not at the end of a rollout: Stable-Baselines3 has not learned from it yet
        if self._history.episodes - self._saved >= self.EPISODES:
            self._save()
            self._saved = self._history.episodes
