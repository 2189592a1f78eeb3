"""The driver of all searches: spends an exact number of evaluations, several at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from prunegym.agents.errors import AgentError
from prunegym.agents.interface import GymEnv
from prunegym.agents.progress import EpisodeBar
from prunegym.agents.rollout import EpisodeResult, require_episodes
from prunegym.agents.search.base import Actions
from prunegym.agents.search.registry import SEARCHES


@dataclass(frozen=True)
class SearchResult:
    """All episodes that a search evaluated, and its two candidate plans."""

    best: EpisodeResult  # the highest reward among the proposals, if there are any
    final: EpisodeResult  # the search's own answer; `best` if it has none
    results: list[EpisodeResult]  # all evaluations, in the order of the proposals, the answer included

    @property
    def episodes(self) -> int:
        """Number of evaluations spent."""
        return len(self.results)


def search(
    env: GymEnv | VecEnv,
    name: str,
    *,
    admitted: NDArray[np.bool_],
    episodes: int,
    seed: int,
    progress: bool = False,
    on_episode: Callable[[EpisodeResult], None] | None = None,
) -> SearchResult:
    """Search for a plan; a search with an answer of its own spends the last episode on it.

    The same seed gives the same proposals, however many environments evaluate them.

    Args:
        env: a pruning environment, or several equal ones in lockstep.
        name: a name in `SEARCHES`.
        admitted: whether an entry of an action has an effect: [sites, techniques], in the order of the steps.
        episodes: exact number of evaluations to spend.
        seed: seed of the search and of the environments.
        progress: show a bar on standard error.
        on_episode: called after each episode; an exception in it ends the search.

    Raises:
        UnknownNameError: there is no such search.
        AgentError: fewer than one episode, or episodes that do not take one step for each row of `admitted`.
    """
    require_episodes(episodes)
    method = SEARCHES[name](admitted, seed)
    with EpisodeBar(name, episodes=episodes, shown=progress) as bar:
        listeners = [bar.show, *([on_episode] if on_episode else [])]
        evaluations = _Evaluations(env, shape=admitted.shape, seed=seed, listeners=listeners)
        while (remaining := episodes - len(evaluations.results) - (method.answer() is not None)) > 0:
            proposals = method.propose()
            totals = evaluations.run(proposals[:remaining])
            if len(totals) == len(proposals):  # searches cannot learn from a part of a generation
                method.tell(proposals, totals)
        n_proposed = len(evaluations.results)
        answer = method.answer()
        if answer is not None and n_proposed < episodes:
            evaluations.run([answer])
    results = evaluations.results
    best = max(results[:n_proposed] or results, key=lambda result: (not result.estimated, result.total))
    return SearchResult(best, results[-1] if n_proposed < episodes else best, results)


class _Evaluations:
    """Environments in lockstep, each with an episode of its own, and the results of their episodes."""

    def __init__(
        self,
        env: GymEnv | VecEnv,
        *,
        shape: tuple[int, ...],  # of the actions of an episode: [sites, techniques]
        seed: int,
        listeners: Sequence[Callable[[EpisodeResult], None]],
    ) -> None:
        self.results: list[EpisodeResult] = []
        self._env = env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env])
        self._listeners = listeners
        self._actions = np.zeros((self._env.num_envs, *shape), dtype=np.float32)
        self._env.seed(seed)
        self._env.reset()

    def run(self, proposals: Sequence[Actions]) -> list[float]:
        """Evaluate all proposals, in order, and return their total rewards."""
        for start in range(0, len(proposals), self._env.num_envs):
            self._run_in_lockstep(proposals[start : start + self._env.num_envs])
        return [result.total for result in self.results[len(self.results) - len(proposals) :]]

    def _run_in_lockstep(self, proposals: Sequence[Actions]) -> None:
        """Evaluate at most one proposal for each environment."""
        # idle environments repeat their last episode, whose result is cached, so that they cost nothing
        self._actions = np.concatenate([proposals, self._actions[len(proposals) :]])
        infos: list[dict[str, Any]] = []
        sites = self._actions.shape[1]
        for step in range(sites):
            _, _, dones, infos = self._env.step(self._actions[:, step])
            if np.any(dones != (step == sites - 1)):
                raise AgentError(f"an episode does not take {sites} steps; `admitted` needs one row per site")
        for info in infos[: len(proposals)]:
            self.results.append(EpisodeResult.from_dict(info["episode_result"]))
            for listener in self._listeners:
                listener(self.results[-1])
