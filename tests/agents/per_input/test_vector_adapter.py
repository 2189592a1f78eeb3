import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor

from prunegym.agents.per_input.vector_adapter import GymVectorAdapter
from tests.agents.per_input.toy_inputs import ToyInputs

COUNT = 6


@pytest.fixture
def env():
    return ToyInputs(COUNT)


@pytest.fixture
def envs(env):
    return GymVectorAdapter(env)


def actions(*values):
    return np.array(values, dtype=np.float32)[:, None]


def test_has_the_spaces_of_one_sub_environment(envs, env):
    assert envs.num_envs == COUNT
    assert envs.observation_space == env.single_observation_space
    assert envs.action_space == env.single_action_space


def test_a_step_returns_an_entry_for_each_sub_environment(envs, env):
    envs.seed(3)
    first = envs.reset()
    hard = first[:, 0]
    skipped = np.linspace(-1, 1, COUNT)
    between, rewards, dones, infos = envs.step(actions(*skipped))
    assert (between[:, 0] == hard).all()
    assert (between[:, 1] == 1).all()
    assert rewards.dtype == np.float32
    assert rewards.shape == dones.shape == (COUNT,)
    assert not rewards.any()
    assert not dones.any()
    assert infos == [{}] * COUNT
    after, rewards, dones, infos = envs.step(actions(*skipped))
    assert dones.all()
    assert (after[:, 1] == 0).all()  # of the next episodes
    np.testing.assert_allclose(rewards, 1 - hard * ((skipped + 1) / 2) ** 2, rtol=1e-6)
    for number, info in enumerate(infos):
        assert info["macs"] == pytest.approx((1 - skipped[number]) / 2)
        assert info["ratios"] == pytest.approx([(skipped[number] + 1) / 2] * 2)
        assert info["agrees"] == (hard[number] * ((skipped[number] + 1) / 2) ** 2 < 0.1)


def test_truncated_episodes_are_over_too(envs, env, monkeypatch):
    envs.reset()
    step, truncated = env.step, np.arange(COUNT) % 2 == 1

    def cut_short(given):
        observations, rewards, terminated, _, infos = step(given)
        return observations, rewards, terminated, truncated, infos

    monkeypatch.setattr(env, "step", cut_short)
    assert envs.step(np.zeros((COUNT, 1), np.float32))[2].tolist() == truncated.tolist()


def test_a_seed_is_used_once(envs, env):
    envs.seed(7)
    first, second = envs.reset(), envs.reset()
    envs.seed(7)
    assert (envs.reset() == first).all()
    assert (first != second).any()
    assert env.seeds == [7, None, 7]


def test_restarts_from_a_given_state_and_takes_no_seed_then(envs, env):
    envs.seed(7)
    envs.reset()
    for _ in range(2):
        observations, *_ = envs.step(actions(*[0.0] * COUNT))
    (start,) = envs.env_method("episode_start", indices=envs.stateful_indices)
    other = ToyInputs(COUNT)
    again = GymVectorAdapter(other)
    again.seed(9)
    again.env_method("restart_from", start, indices=0)
    assert (again.reset() == observations).all()
    assert other.seeds == [None]
    again.seed(9)
    again.reset()
    assert other.seeds == [None, 9]  # it restarts once


def test_a_method_is_called_once_whoever_is_asked(envs, env, monkeypatch):
    calls = []
    monkeypatch.setattr(env, "marginal_price", lambda: calls.append(1) or 5.0)
    assert envs.env_method("marginal_price") == [5.0] * COUNT
    assert envs.env_method("marginal_price", indices=[1, 2]) == [5.0] * 2
    assert envs.env_method("marginal_price", indices=3) == [5.0]
    assert len(calls) == 3


def test_attributes_are_shared(envs, env):
    envs.set_attr("price", 0.25)
    assert env.price == 0.25
    assert envs.get_attr("price") == [0.25] * COUNT
    assert envs.get_attr("price", indices=[0, 4]) == [0.25] * 2
    with pytest.raises(AttributeError):
        envs.get_attr("nothing")


def test_nothing_is_wrapped_and_closing_closes(envs, env):
    assert envs.env_is_wrapped(Monitor) == [False] * COUNT
    assert envs.env_is_wrapped(Monitor, indices=2) == [False]
    envs.close()
    assert env.closed_down


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_other_ways_to_begin_anew_are_no_match(env, monkeypatch, mode):
    monkeypatch.setitem(env.metadata, "autoreset_mode", mode)
    with pytest.raises(AssertionError):
        GymVectorAdapter(env)


def test_ppo_learns_on_it():
    env = ToyInputs(32)  # at a price of 0, running everything is best for hard inputs
    quick = {"n_steps": 4, "batch_size": 64, "n_epochs": 6, "learning_rate": 0.02}
    model = PPO("MlpPolicy", GymVectorAdapter(env), **quick, seed=0, device="cpu").learn(2600)
    for late in (0.0, 1.0):
        action, _ = model.predict(np.array([1.0, late], np.float32), deterministic=True)
        assert action < -0.8
