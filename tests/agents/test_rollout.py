import numpy as np
import pytest

from prunegym.agents.rollout import EpisodeResult, deterministic, exploring, run_episode


def uniform(observation):
    return np.zeros(2, np.float32)


def test_a_rule_that_takes_zero_everywhere_decides_the_same_for_every_group(env):
    result = run_episode(env, uniform)
    assert list(result.plan) == list(env.site_names)
    assert all(entry == {"static_ratio": 0.45, "runtime_ratio": 0.25} for entry in result.plan.values())
    assert env.evaluations == 1


def test_a_result_holds_what_the_last_step_reported(env):
    actions = iter(env.best_actions.astype(np.float32))
    result = run_episode(env, lambda observation: next(actions))
    assert result.total == pytest.approx(1.25)
    assert (result.accuracy, result.shares) == (pytest.approx(1.0), {"macs": 0.5, "params": 0.4})


def test_the_seed_reaches_the_environment(env):
    seen = []
    for seed in (3, 3, 4):
        run_episode(env, lambda observation: seen.append(observation[0]) or uniform(observation), seed=seed)
    first, same, other = seen[::5]
    assert first == same != other


def test_a_deterministic_rule_does_not_explore_and_an_exploring_one_does():
    class Policy:
        def predict(self, observation, *, deterministic):
            return (observation, deterministic), None

    assert deterministic(Policy())("observation") == ("observation", True)
    assert exploring(Policy())("observation") == ("observation", False)


def test_a_result_survives_plain_data(env):
    result = run_episode(env, uniform)
    assert EpisodeResult.from_dict(result.to_dict()) == result


@pytest.mark.parametrize(
    ("parts", "estimated"), [({}, False), ({"estimated": 0.0}, False), ({"estimated": 1.0}, True)]
)
def test_a_result_says_whether_its_reward_is_an_estimate(parts, estimated):
    assert (
        EpisodeResult({}, {"total": 1.0, **parts}, None, {"macs": 0.5, "params": 0.5}).estimated is estimated
    )
