"""The baseline every learner must beat, and the choice between candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from agents.errors import AgentError
from agents.interface import Action, GymEnv, Observation, pruning_environment
from agents.progress import EpisodeBar
from agents.rollout import EpisodeResult, run_episode


def random_search(
    env: GymEnv,
    *,
    episodes: int,
    seed: int,
    progress: bool = False,
    on_episode: Callable[[EpisodeResult], None] | None = None,
) -> list[EpisodeResult]:
    """Run episodes whose actions are drawn evenly from the whole box, each independently.

    Args:
        env: the environment.
        episodes: how many evaluations to spend, all of them.
        seed: of the actions and of the environment.
        progress: show a bar on standard error.
        on_episode: called after each episode.

    Returns:
        All results, the highest reward first; of equal rewards the earlier first.

    Raises:
        AgentError: fewer than one episode.
    """
    require_episodes(episodes)
    rng = np.random.default_rng(seed)

    def act(observation: Observation) -> Action:
        return rng.uniform(-1.0, 1.0, size=2).astype(np.float32)

    results = []
    with EpisodeBar("random", episodes=episodes, shown=progress) as bar:
        for episode in range(episodes):
            results.append(run_episode(env, act, seed=seed if episode == 0 else None))
            bar.show(results[-1])
            if on_episode is not None:
                on_episode(results[-1])
    return sorted(results, key=lambda result: -result.total)


def choose_on_validation(env: GymEnv, candidates: Sequence[EpisodeResult]) -> EpisodeResult:
    """Return the candidate whose plan scores highest on the validation split; of equals, the earlier.

    Each distinct plan is scored once. `candidates` holds at least one.
    """
    distinct = [
        result
        for position, result in enumerate(candidates)
        if all(result.plan != earlier.plan for earlier in candidates[:position])
    ]
    if len(distinct) == 1:
        return distinct[0]
    return max(distinct, key=lambda result: pruning_environment(env).validate(result.plan))


def require_episodes(episodes: int) -> None:
    """Raise AgentError unless there is at least one episode to run."""
    if episodes < 1:
        raise AgentError(
            f"episodes must be 1 or more, got {episodes}; each episode is one evaluation of a plan"
        )
