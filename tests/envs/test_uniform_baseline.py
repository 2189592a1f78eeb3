import numpy as np
import pytest
import torch

from prunegym.envs import Budget
from prunegym.pruning.method import Method
from tests.envs.conftest import labelled, make_small_env
from tests.pruning.oracles import silenced_output

NONE = Method(compensation="none")
WRITERS = {"0.0": "0.0.weight", "1.0": "1.0.weight"}


def divergence(wanted, found):
    chances = wanted.double().softmax(1)
    return float((chances * (chances.log() - found.double().softmax(1).log())).sum(1).mean())


def batches(images, labels):
    return list(zip(images.split(8), labels.split(8), strict=True))


def relief_of(env):
    return [one["loo_gain"] for one in env.problem.site_summary()]


def relief_by_hand(env, images):
    """Silence the weakest units of the plain network, in both groups and in each but one."""
    model, graph = env.problem.network.model, env.problem.network.graph
    kept = {}
    for name, decision in env.problem.allocation("uniform").items():
        strength = model.state_dict()[WRITERS[name]].abs().sum((1, 2, 3))
        count = round(len(strength) * (1 - decision["static_ratio"]))
        kept[name] = strength.argsort(descending=True)[:count].sort().values
    with torch.no_grad():
        dense = model(images)
    loss = divergence(dense, silenced_output(model, graph, kept, images))
    spared = [{name: kept[name] for name in kept if name != whole} for whole in WRITERS]
    return [1 - divergence(dense, silenced_output(model, graph, one, images)) / loss for one in spared]


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_relief_is_what_networks_silenced_by_hand_show(share):
    env = make_small_env("plain", method=NONE, budget={"macs": share})
    expected = relief_by_hand(env, labelled("plain")[1])
    assert max(expected) > 0.1
    assert relief_of(env) == pytest.approx(np.clip(expected, 0, 1), abs=1e-4)


def test_relief_is_measured_on_the_first_128_images():
    _, images, labels = labelled("plain", count=160)
    env = make_small_env("plain", method=NONE, reward=batches(images, labels))
    expected = relief_by_hand(env, images[:128])
    assert relief_of(env) == pytest.approx(np.clip(expected, 0, 1), abs=1e-4)
    assert expected != pytest.approx(relief_by_hand(env, images), abs=1e-3)


def test_where_pruning_does_no_harm_nothing_is_relieved():
    env = make_small_env("plain", budget={"macs": 1.0})
    assert relief_of(env) == [0.0, 0.0]


def test_a_budget_is_measured_once(monkeypatch):
    env, applied = make_small_env("plain", budget={"macs": 0.5}), []
    half = relief_of(env)
    compress = env.problem.network.apply
    monkeypatch.setattr(env.problem.network, "apply", lambda plan: applied.append(plan) or compress(plan))
    env.set_budget(Budget({"macs": 0.7}))
    assert relief_of(env) != half
    assert len(applied) == 3  # the uniform plan, and each group spared
    env.set_budget(Budget({"macs": 0.5}))
    assert relief_of(env) == half
    assert len(applied) == 3


def episode_of(env, actions):
    env.reset(seed=0)
    rewards = []
    for action in actions:
        _, reward, terminated, _, info = env.step(np.array(action, dtype=np.float32))
        rewards.append(reward)
    assert terminated
    return rewards, info["episode_result"]


@pytest.mark.parametrize("actions", ["centred", "raw"])
@pytest.mark.parametrize("network", ["plain", "padded", "grouped", "residual"])
def test_the_rewards_of_an_episode_add_up_to_its_total_dense_or_not(network, actions):
    dense, sparse = (make_small_env(network, actions=actions, dense_reward=one) for one in (True, False))
    rng, early = np.random.default_rng(0), []
    for _ in range(6):
        wishes = rng.uniform(-1, 1, (len(dense.site_names), 2))
        (rewards, result), (others, same) = episode_of(dense, wishes), episode_of(sparse, wishes)
        assert result == same
        assert sum(rewards) == pytest.approx(result["reward"]["total"], abs=1e-12)
        assert others == [0.0] * (len(others) - 1) + [result["reward"]["total"]]
        early += rewards[:-1]
    assert all(-0.4 <= reward <= 0.0 for reward in early)
    assert min(early) < 0.0


def test_the_dense_rewards_of_the_uniform_plan_are_its_reliefs():
    env = make_small_env("padded", dense_reward=True)
    rewards, _ = episode_of(env, np.zeros((len(env.site_names), 2)))
    expected = [-0.4 * max(0.01, loo_gain) for loo_gain in relief_of(env)]
    whole = [one["static_ratio"] == 0 for one in env.problem.allocation("uniform").values()]
    assert rewards[:-1] == pytest.approx([0.0 if w else e for w, e in zip(whole, expected, strict=True)][:-1])


def test_a_dense_reward_by_hand():
    env = make_small_env("plain", dense_reward=True, actions="raw", budget={"macs": 0.5})
    facts = env.problem.site_summary()[0]
    assert env.problem.allocation("uniform")["0.0"]["static_ratio"] == 0.5
    env.reset()
    reward = env.step(np.array([0.0, 2 * (1 / 3) / 0.9 - 1], dtype=np.float32))[1]  # 4 of 6 stay
    quarter, half, _ = facts["errors"]
    loss = quarter + (half - quarter) * (1 / 3 - 0.25) / 0.25  # on the line between two known points
    assert reward == pytest.approx(-0.4 * facts["loo_gain"] * loss / half)
    assert -0.4 < reward < -0.04
    env.reset()
    assert env.step(np.array([0.0, 0.9], dtype=np.float32))[1] == -0.4  # and no less
    env.reset()
    env.set_budget(Budget({"macs": 1.0}))
    assert env.step(np.array([0.0, -1.0], dtype=np.float32))[1] == 0.0


def test_of_uniform_pruning_the_reliefs_are_expected():
    env = make_small_env("padded")
    _, result = episode_of(env, np.zeros((len(env.site_names), 2)))
    whole = [one["static_ratio"] == 0 for one in env.problem.allocation("uniform").values()]
    shares = [0.0 if w else max(0.01, loo_gain) for w, loo_gain in zip(whole, relief_of(env), strict=True)]
    assert result["reward"]["expected"] == pytest.approx(sum(shares))


def test_what_is_expected_by_hand():
    """Of a group whose units are skipped as much as if they were removed."""
    env = make_small_env("plain", budget={"macs": 0.5})
    facts = env.problem.site_summary()
    _, result = episode_of(env, [[0.5, -0.4], [-1.0, 0.3]])
    shares = []
    for fact, (name, decision) in zip(facts, result["plan"].items(), strict=True):
        gone = 1 - (1 - decision["static_ratio"]) * (1 - decision.get("runtime_ratio", 0.0))
        even = env.problem.allocation("uniform")[name]["static_ratio"]
        here, usual = np.interp([gone, even], [0, 0.25, 0.5, 0.75, 1], [0, *fact["errors"], 1])
        shares.append(max(0.01, fact["loo_gain"]) * here / usual)
    assert any(decision.get("runtime_ratio", 0.0) > 0 for decision in result["plan"].values())
    assert result["reward"]["expected"] == pytest.approx(sum(shares))


def test_of_a_plan_that_no_episode_decided_nothing_is_expected(monkeypatch):
    env = make_small_env("plain")
    monkeypatch.setattr(
        "prunegym.envs.uniform_baseline.UniformBaselines._measure_loo_gain", None
    )  # which costs evaluations
    assert "expected" not in env.problem.evaluate(env.problem.allocation("uniform"))["reward"]


def test_where_uniform_pruning_does_no_harm_what_is_expected_stays_within_reason():
    env = make_small_env("plain", actions="raw", budget={"macs": 1.0})
    _, result = episode_of(env, np.full((len(env.site_names), 2), 0.9))
    assert 0.1 < result["reward"]["expected"] <= 10 * len(env.site_names)
