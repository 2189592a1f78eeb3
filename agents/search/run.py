"""The driver of every search: an exact number of evaluations, several at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from prunegym.agents.errors import AgentError
from prunegym.agents.interface import GymEnv
from prunegym.agents.progress import EpisodeBar
from prunegym.agents.rollout import EpisodeResult, require_episodes
from prunegym.agents.search.base import Actions
from prunegym.agents.search.registry import SEARCHES


@dataclass(frozen=True)
class SearchResult:
    """All that a search evaluated, and its two candidate plans."""

    best: EpisodeResult  # the highest reward among the episodes that explored, if any did
    final: EpisodeResult  # what the search itself decides in the end; `best` if it decides nothing else
    results: list[EpisodeResult]  # every evaluation, in the order of the proposals, the final one included

    @property
    def episodes(self) -> int:
        """How many evaluations were spent."""
        return len(self.results)


def search(
    env: GymEnv | VecEnv,
    name: str,
    *,
    gated: Sequence[bool],
    episodes: int,
    seed: int,
    progress: bool = False,
    on_episode: Callable[[EpisodeResult], None] | None = None,
) -> SearchResult:
    """Search for a plan; a search with an answer of its own spends the last episode on that.

    The same seed makes the same proposals, however many environments evaluate them.

    Args:
        env: a pruning environment, or several equal ones that step together.
        name: a name in `SEARCHES`.
        gated: for each group, in the order of the steps, whether its runtime action has any effect.
        episodes: how many evaluations to spend, all of them.
        seed: of the search and of the environments.
        progress: show a bar on standard error.
        on_episode: called after each episode; what it raises ends the search.

    Raises:
        UnknownNameError: there is no such search.
        AgentError: fewer than one episode, or episodes that do not take one step for each entry of `gated`.
    """
    require_episodes(episodes)
    method = SEARCHES[name](gated, seed)
    with EpisodeBar(name, episodes=episodes, shown=progress) as bar:
        listeners = [bar.show, *([on_episode] if on_episode else [])]
        evaluations = _Evaluations(env, groups=len(gated), seed=seed, listeners=listeners)
        while (left := episodes - len(evaluations.results) - (method.answer() is not None)) > 0:
            proposals = method.propose()
            totals = evaluations.run(proposals[:left])
            if len(totals) == len(proposals):  # half a generation would mislead
                method.tell(proposals, totals)
        explored = len(evaluations.results)
        answer = method.answer()
        if answer is not None and explored < episodes:
            evaluations.run([answer])
    results = evaluations.results
    best = max(results[:explored] or results, key=lambda result: (not result.estimated, result.total))
    return SearchResult(best, results[-1] if explored < episodes else best, results)


class _Evaluations:
    """Environments that step together, each through an episode of its own, and what came of them."""

    def __init__(
        self,
        env: GymEnv | VecEnv,
        *,
        groups: int,
        seed: int,
        listeners: Sequence[Callable[[EpisodeResult], None]],
    ) -> None:
        self.results: list[EpisodeResult] = []
        self._env = _vectorized(env)
        self._listeners = listeners
        self._actions = np.zeros((self._env.num_envs, groups, 2), dtype=np.float32)
        self._env.seed(seed)
        self._env.reset()

    def run(self, proposals: Sequence[Actions]) -> list[float]:
        """Evaluate all proposals, in order, and return their totals."""
        count = self._env.num_envs
        for start in range(0, len(proposals), count):
            self._run_together(proposals[start : start + count])
        return [result.total for result in self.results[len(self.results) - len(proposals) :]]

    def _run_together(self, proposals: Sequence[Actions]) -> None:
        """Evaluate at most one proposal for each environment."""
        # idle environments repeat their last episode: its plan is already scored, so they cost nothing
        self._actions = np.concatenate([proposals, self._actions[len(proposals) :]])
        infos: list[dict[str, Any]] = []
        groups = self._actions.shape[1]
        for step in range(groups):
            _, _, dones, infos = self._env.step(self._actions[:, step])
            if np.any(dones != (step == groups - 1)):
                raise AgentError(
                    f"an episode does not take {groups} steps; `gated` needs one entry per group"
                )
        for info in infos[: len(proposals)]:
            self.results.append(EpisodeResult.from_dict(info["episode_result"]))
            for listener in self._listeners:
                listener(self.results[-1])


def _vectorized(env: GymEnv | VecEnv) -> VecEnv:
    """Return `env` itself if it is several environments, else a vector of one."""
    return env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env])
