import numpy as np
import pytest

from agents.rollout import EpisodeResult, deterministic, run_episode, uniform


def test_the_uniform_rule_makes_the_same_decision_everywhere(env):
    result = run_episode(env, uniform)
    assert set(result.plan) == set(env.group_names)
    assert all(entry == {"static_ratio": 0.45, "runtime_ratio": 0.0} for entry in result.plan.values())
    assert env.evaluations == 1


def test_a_result_holds_what_the_last_step_reported(env):
    actions = iter(env.best_actions.astype(np.float32))
    result = run_episode(env, lambda observation: next(actions))
    assert result.total == pytest.approx(1.25)
    assert (result.accuracy, result.macs, result.params) == (pytest.approx(1.0), 0.5, 0.4)


def test_the_seed_reaches_the_environment(env):
    seen = []
    for seed in (3, 3, 4):
        run_episode(
            env, lambda observation: seen.append(observation[0]) or np.zeros(2, np.float32), seed=seed
        )
    first, same, other = seen[::5]
    assert first == same != other


def test_a_deterministic_rule_does_not_explore():
    class Policy:
        def predict(self, observation, *, deterministic):
            return (observation if deterministic else None), None

    assert deterministic(Policy())("observation") == "observation"


def test_a_result_survives_plain_data(env):
    result = run_episode(env, uniform)
    assert EpisodeResult.from_dict(result.to_dict()) == result
