"""The choice between candidates, on images that no search and no learner has seen."""

from __future__ import annotations

from collections.abc import Sequence

from prunegym.agents.interface import GymEnv, problem_of
from prunegym.agents.rollout import EpisodeResult


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
    return max(distinct, key=lambda result: problem_of(env).validate(result.plan))
