"""The choice between candidate plans on validation images, which no search and no learner uses."""

from __future__ import annotations

from collections.abc import Sequence

from prunegym.agents.interface import GymEnv, problem_of
from prunegym.agents.rollout import EpisodeResult


def choose_on_validation(env: GymEnv, candidates: Sequence[EpisodeResult]) -> EpisodeResult:
    """Return the candidate whose plan scores highest on the validation split; of equal ones, the first.

    Each distinct plan is scored once.

    Args:
        env: the environment of the network.
        candidates: one or more episodes.
    """
    distinct = [
        result
        for index, result in enumerate(candidates)
        if all(result.plan != earlier.plan for earlier in candidates[:index])
    ]
    if len(distinct) == 1:
        return distinct[0]
    return max(distinct, key=lambda result: problem_of(env).validate(result.plan))
