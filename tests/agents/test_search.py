import numpy as np
import pytest

from agents.errors import AgentError
from agents.rollout import EpisodeResult
from agents.search import choose_on_validation, random_search


def candidate(static_ratio, total=0.0):
    plan = {"layer0.conv": {"static_ratio": static_ratio, "runtime_ratio": 0.0}}
    return EpisodeResult(plan=plan, reward={"total": total}, accuracy=None, macs=0.5, params=0.5)


def test_random_search_spends_every_episode_and_sorts_by_reward(env):
    seen = []
    results = random_search(env, episodes=20, seed=0, on_episode=seen.append)
    assert env.evaluations == len(results) == len(seen) == 20
    assert [result.total for result in results] == sorted((result.total for result in seen), reverse=True)


def test_random_search_covers_the_whole_box_and_repeats_with_its_seed(env):
    first, again, other = (random_search(env, episodes=40, seed=seed) for seed in (0, 0, 1))
    static = np.array([[entry["static_ratio"] for entry in result.plan.values()] for result in first])
    assert static.min() < 0.02
    assert static.max() > 0.88
    assert first == again != other


def test_validation_chooses_and_not_the_reward(env):
    near, far = candidate(0.45, total=0.0), candidate(0.9, total=1.0)
    assert choose_on_validation(env, [far, near]) is near


def test_of_equal_scores_the_earlier_candidate_wins(env):
    above, below = candidate(0.75), candidate(0.25)
    assert choose_on_validation(env, [above, below]) is above


def test_each_distinct_plan_is_validated_once(env):
    choose_on_validation(env, [candidate(0.1), candidate(0.1), candidate(0.2)])
    assert len(env.validated) == 2


def test_a_search_without_episodes_is_refused(env):
    with pytest.raises(AgentError, match="episodes must be 1 or more, got 0"):
        random_search(env, episodes=0, seed=0)
