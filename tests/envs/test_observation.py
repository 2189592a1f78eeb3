import math
import statistics

import numpy as np
import pytest

from prunegym.envs import Budget, BudgetRange
from prunegym.envs.observation import MEASURE_FEATURES, SITE_FEATURES, TECHNIQUE_FEATURES
from tests.envs.conftest import features_of, make_small_env

pytestmark = pytest.mark.usefixtures("features_alone")


def observations(env, seed=0):
    rng = np.random.default_rng(seed)
    observation, _ = env.reset()
    seen, terminated = [observation], False
    while not terminated:
        observation, _, terminated, _, _ = env.step(rng.uniform(-1, 1, 2).astype(np.float32))
        seen.append(observation)
    return np.array(seen)


def first(env, **settings):
    return features_of(env, env.reset()[0])


@pytest.mark.parametrize("network", ["residual", "projected", "concat", "mlp", "transposed", "one-channel"])
def test_observations_are_bounded_and_of_one_size_in_every_network(small_env, network):
    env = small_env(network)
    for seed in range(3):
        seen = observations(env, seed)
        assert seen.shape == (len(env.site_names) + 1, len(env.observation_names))
        assert seen.dtype == np.float32
        assert (seen >= 0).all()
        assert (seen <= 1).all()


def test_the_features_are_named(small_env):
    env = small_env()
    described = (*SITE_FEATURES, *TECHNIQUE_FEATURES, *MEASURE_FEATURES, *env.action_names)
    assert len(set(env.observation_names)) == len(env.observation_names)
    assert all(name.startswith(described) for name in env.observation_names)
    assert env.observation_space.shape == (len(env.observation_names),)


def test_the_budget_is_seen_and_an_absent_one_reads_one(small_env):
    seen = first(small_env(budget={"params": 0.75}))
    assert (seen.budget_macs, seen.budget_params) == (1.0, 0.75)


def test_features_of_a_plain_network_by_hand(small_env):
    # conv 3->6 (6x6), conv 6->8 (stride 2: 3x3), linear 8->5, each with a BatchNorm but the last
    env = small_env("plain", budget={"macs": 1.0})
    macs = [9 * 3 * 6 * 36, 9 * 6 * 8 * 9, 8 * 5]
    seen = [features_of(env, row) for row in observations(env)]
    assert [one.place for one in seen[:2]] == [0.0, 1.0]
    assert seen[0].units == pytest.approx(math.log2(6) / 12)
    assert seen[1].units == pytest.approx(math.log2(8) / 12)
    assert (seen[0].writers, seen[0].readers, seen[0].kernel, seen[0].available_runtime_ratio) == (
        0.0,
        0.0,
        1.0,
        1.0,
    )
    assert seen[0].positions == pytest.approx(math.log2(36) / 16)
    assert seen[0].share_macs == pytest.approx(math.sqrt((macs[0] + macs[1]) / sum(macs)))
    assert seen[1].share_macs == pytest.approx(math.sqrt((macs[1] + macs[2]) / sum(macs)))
    assert (seen[0].even_static_ratio, seen[0].now_macs) == (0.0, 1.0)


def test_what_was_decided_is_seen_at_the_next_group(small_env):
    env = small_env("plain", budget={"macs": 0.6})
    env.reset()
    observation, *_ = env.step(np.array([-1.0, 0.3], dtype=np.float32))
    seen = features_of(env, observation)
    env.step(np.zeros(2, dtype=np.float32))
    assert seen.last_static_ratio > 0.0
    assert seen.last_runtime_ratio == 0.0
    assert seen.mean_static_ratio == pytest.approx(seen.last_static_ratio)  # of the one group decided
    assert seen.now_macs < 1.0


def test_the_last_and_the_mean_decision_are_those_of_the_plan(small_env):
    env = small_env("projected", budget={"macs": 0.6})
    env.reset()
    seen = []
    for step in range(len(env.site_names)):
        action = np.array([0.9, (-0.8, 0.6, 0.1)[step % 3]], dtype=np.float32)
        observation, _, _, _, info = env.step(action)
        seen.append(features_of(env, observation))
    plan = list(info["episode_result"]["plan"].values())
    assert [one.last_static_ratio for one in seen] == pytest.approx([one["static_ratio"] for one in plan])
    assert [one.last_runtime_ratio for one in seen] == pytest.approx(
        [one.get("runtime_ratio", 0.0) for one in plan]
    )
    assert max(one.get("runtime_ratio", 0.0) for one in plan) > 0
    weights = [features_of(env, env.reset()[0]).share_macs ** 2, *(one.share_macs**2 for one in seen[:-1])]
    for done in range(1, len(plan) + 1):
        static = [one["static_ratio"] for one in plan[:done]]
        assert seen[done - 1].mean_static_ratio == pytest.approx(
            np.average(static, weights=weights[:done]), rel=1e-4
        )


def test_the_even_ratio_answers_to_what_was_decided(small_env):
    env = small_env("projected", budget={"macs": 0.6})
    before = features_of(env, env.reset()[0]).even_static_ratio
    spared = features_of(env, env.step(np.array([0.0, -1.0], dtype=np.float32))[0]).even_static_ratio
    assert 0.0 < before < spared


def test_a_trunk_has_several_writers_and_takes_no_gate(small_env):
    seen = first(small_env("residual"))  # stem and second convolution of the block write together
    assert seen.writers == 0.5
    assert seen.available_runtime_ratio == 0.0


def test_the_ranks_order_the_groups(small_env):
    env = small_env("projected")
    seen = [features_of(env, row) for row in observations(env)][:-1]
    by_error = sorted(seen, key=lambda one: one.static_ratio_error_50)
    assert [one.static_ratio_error_rank for one in by_error] == sorted(
        one.static_ratio_error_rank for one in seen
    )
    assert min(one.static_ratio_error_rank for one in seen) == 0.0
    assert min(one.static_ratio_price_rank for one in seen) == 0.0


def test_the_budget_of_each_episode_of_a_range_is_seen():
    budgets = BudgetRange(Budget({"macs": 0.4, "params": 0.7}), Budget({"macs": 0.9, "params": 0.7}))
    env = make_small_env("projected", budget=budgets)
    seen = [first(env) for _ in range(60)]
    assert len({one.budget_macs for one in seen}) > 3
    assert {one.budget_params for one in seen} == {np.float32(0.7)}


def test_relief_is_seen_by_itself_by_price_and_by_rank():
    env = make_small_env("padded")
    facts = env.problem.site_summary()
    seen = [features_of(env, row) for row in observations(env)][:-1]
    loo_gain = [one["loo_gain"] for one in facts]
    prices = [one["loo_gain"] / one["macs_share"] for one in facts]
    assert len(set(loo_gain)) > 2
    assert [one.loo_gain for one in seen] == pytest.approx([math.sqrt(value) for value in loo_gain])
    assert [one.loo_gain_rank for one in seen] == pytest.approx(
        [sum(other < mine for other in loo_gain) / len(loo_gain) for mine in loo_gain]
    )
    usual = statistics.median(prices)
    expected = [price / (price + usual) if price + usual > 0 else 0.5 for price in prices]
    assert [one.loo_gain_price for one in seen] == pytest.approx(expected)
