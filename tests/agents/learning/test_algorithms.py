import math

import numpy as np
import pytest
import yaml

from prunegym.agents.errors import HyperparameterError
from prunegym.agents.learning.algorithms import (
    ALGORITHMS,
    FOLDER,
    RANGES,
    RolloutSchedule,
    read_overrides,
    with_overrides,
)
from prunegym.agents.per_input.ppo import PER_INPUT
from prunegym.agents.vector.make import vectorized
from prunegym.pruning.errors import UnknownNameError

PPO = ALGORITHMS["ppo"]


def make(env, name="ppo", schedule=None, **overrides):
    spec = ALGORITHMS[name]
    schedule = schedule or RolloutSchedule(len(env.site_names), networks=1, n_envs=1)
    hyperparameters = with_overrides(spec, overrides)
    envs = vectorized(env)
    envs.num_envs = schedule.n_envs  # of which no more is asked than how many there are
    return spec.make(
        envs, schedule, hyperparameters=hyperparameters, seed=0, device="cpu", tensorboard_log=None
    )


def test_an_unknown_algorithm_is_refused_with_the_nearest_and_the_rest():
    with pytest.raises(
        UnknownNameError,
        match=r"no algorithm named 'pppo'\. Did you mean 'ppo'\? Known: amc, ddpg, dyna-ppo, ppo, sac, td3",
    ):
        ALGORITHMS["pppo"]
    with pytest.raises(UnknownNameError, match=r"no algorithm named 'zzz'\. Known"):
        ALGORITHMS["zzz"]


class TestRounds:
    def test_a_round_is_one_episode_of_each_network_in_each_environment(self):
        assert RolloutSchedule(steps=10, networks=2, n_envs=3).episodes == 6

    @pytest.mark.parametrize(("episodes", "rounds"), [(1, 1), (6, 1), (7, 2), (12, 2)])
    def test_so_many_episodes_take_so_many_rounds(self, episodes, rounds):
        assert RolloutSchedule(steps=10, networks=2, n_envs=3).for_episodes(episodes) == rounds

    @pytest.mark.parametrize("groups", [1, 2, 7, 60])
    def test_ppo_updates_on_whole_episodes_whatever_the_group_count(self, toy, groups):
        model = make(toy(groups))  # warnings are errors: it warns where a minibatch is cut short
        assert model.n_steps == 8 * groups
        assert model.batch_size == 2 * groups

    @pytest.mark.parametrize(
        ("steps", "networks", "n_envs", "n_steps"),
        [(7, 1, 3, 21), (12, 2, 1, 48), (12, 2, 2, 24), (9, 3, 4, 9)],
    )
    def test_ppo_updates_after_whole_rounds_of_at_least_eight_episodes(
        self, env, steps, networks, n_envs, n_steps
    ):
        model = make(env, schedule=RolloutSchedule(steps, networks, n_envs))
        assert model.n_steps == n_steps
        assert (n_steps * n_envs) % model.batch_size == 0

    @pytest.mark.parametrize(
        ("name", "episodes"),
        [("ppo", {"episodes_per_update": 1, "minibatches": 3}), ("dyna-ppo", {"evaluated_episodes": 1})],
    )
    def test_learning_from_a_single_step_is_refused(self, env, name, episodes):
        schedule = RolloutSchedule(steps=3 if name == "ppo" else 1, networks=1, n_envs=1)
        with pytest.raises(HyperparameterError, match=r"step .*; (fewer|raise evaluated_episodes)"):
            make(env, name, schedule, **episodes)

    @pytest.mark.parametrize("name", ["sac", "td3", "ddpg", "amc"])
    def test_the_others_update_after_each_round(self, env, name):
        model = make(env, name, RolloutSchedule(steps=12, networks=2, n_envs=3), updates_per_step=2)
        assert model.train_freq.frequency == 12
        assert model.gradient_steps == 2 * 12 * 3
        if name != "amc":  # which counts episodes
            assert model.learning_starts == 16 * 6

    @pytest.mark.parametrize("name", ["sac", "td3", "ddpg"])
    def test_every_step_returns_the_last_reward(self, env, name):
        model = make(env, name)
        rewards = [0.0, 0.0, 0.0, 0.7] * 2
        for step, reward in enumerate(rewards):
            last = reward > 0
            state = np.full((1, *env.observation_space.shape), step, dtype=np.float32)
            model.replay_buffer.add(
                state, state, np.zeros((1, 2)), np.array([reward]), np.array([last]), [{}]
            )
        sampled = model.replay_buffer.sample(64)
        assert sampled.rewards.numpy() == pytest.approx(0.7)
        assert sampled.dones.numpy() == pytest.approx(1.0)  # nothing is predicted by the critic itself


class TestDefaults:
    @pytest.mark.parametrize("name", list(ALGORITHMS))
    def test_exploration_starts_around_the_uniform_plan(self, env, name):
        action, _ = make(env, name).predict(env.reset(seed=0)[0], deterministic=True)
        assert abs(action).max() < 0.1

    @pytest.mark.parametrize("name", list(ALGORITHMS))
    def test_every_number_in_the_file_reaches_the_model(self, env, name):
        model = make(env, name)
        for key, value in ALGORITHMS[name].hyperparameters.items():
            if key in {
                "gamma",
                "tau",
                "buffer_size",
                "n_epochs",
                "policy_delay",
                "gae_lambda",
                "max_grad_norm",
            }:
                assert getattr(model, key) == value
        assert (
            model.policy_kwargs["net_arch"] == ALGORITHMS[name].hyperparameters["policy_kwargs"]["net_arch"]
        )

    def test_noise_is_as_wide_as_the_file_says(self, env):
        np.testing.assert_array_equal(make(env, "td3", exploration_noise=0.7).action_noise._sigma, [0.7, 0.7])

    def test_the_learning_rate_falls_linearly(self, env):
        schedule = make(env, learning_rate=0.3, final_learning_rate=0.1).lr_schedule
        assert [schedule(left) for left in (1.0, 0.5, 0.0)] == pytest.approx([0.3, 0.2, 0.1])

    def test_changing_what_was_read_changes_no_default(self):
        PPO.hyperparameters["policy_kwargs"]["net_arch"].append(7)
        with_overrides(PPO, {"gamma": 0.5})
        assert PPO.hyperparameters["policy_kwargs"]["net_arch"] == [64, 64]
        assert PPO.hyperparameters["gamma"] == 1.0

    def test_the_files_hold_plain_data_and_one_for_each_algorithm(self):
        def plain(data):
            if isinstance(data, dict):
                return all(isinstance(key, str) and plain(value) for key, value in data.items())
            return all(map(plain, data)) if isinstance(data, list) else type(data) in (int, float, bool)

        assert {path.name for path in FOLDER.iterdir()} == {
            f"{name}.yaml" for name in (*ALGORITHMS, PER_INPUT.name)
        }
        for path in FOLDER.iterdir():
            # the base loader knows no tags; 1e-3 without a point would be text
            assert plain(yaml.safe_load(path.read_text()))
            assert "!" not in path.read_text()


class TestReading:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("learning_rate=1e-3", 0.001),
            ("learning_rate=1.5E-3", 0.0015),
            ("n_epochs=7", 7),
            ("policy_kwargs.net_arch=[32, 16]", [32, 16]),
        ],
    )
    def test_values_are_yaml_and_numbers_numbers(self, text, expected):
        ((key, value),) = read_overrides([text]).items()
        assert key == text.partition("=")[0]
        assert value == expected
        assert type(value) is type(expected)

    def test_of_one_key_the_last_counts(self):
        assert read_overrides(["gamma=0.5", "n_epochs=3", "gamma=0.9"]) == {"gamma": 0.9, "n_epochs": 3}

    @pytest.mark.parametrize(
        "text",
        [
            "learning_rate",
            "learning_rate=[1",
            "learning_rate=!!python/object/apply:os.system ['exit 1']",
            "learning_rate=!!python/name:os.system",
            "learning_rate=!something 1",
            "learning_rate=2020-13-45",
        ],
    )
    def test_what_is_no_plain_yaml_is_refused_in_one_line(self, text):
        with pytest.raises(
            HyperparameterError, match=r"^expected a hyper-parameter such as .*, got .+$"
        ) as caught:
            read_overrides([text])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", [*ALGORITHMS.values(), PER_INPUT], ids=lambda spec: spec.name)
class TestRanges:
    def test_every_number_has_one_that_holds_its_default(self, spec):
        defaults = {key.rpartition(".")[2]: value for key, value in flat(spec.hyperparameters).items()}
        numbers = {name: value for name, value in defaults.items() if not isinstance(value, list)}
        assert numbers
        for name, value in numbers.items():
            low, high = RANGES[name]
            assert low <= value <= high

    @pytest.mark.parametrize("value", [-1e9, 10**12, 10**400, math.inf, math.nan, True, "many", None, [1]])
    def test_what_lies_outside_is_refused_with_the_range(self, spec, value):
        for key, default in flat(spec.hyperparameters).items():
            if isinstance(default, list):
                continue
            low, high = RANGES[key.rpartition(".")[2]]
            with pytest.raises(
                HyperparameterError, match=rf"{key} must be a .*number from {low} to {high}, "
            ):
                with_overrides(spec, {key: value})

    @pytest.mark.parametrize("widths", [[0], [4097], [8] * 11, [8.0], [True], 8, "8"])
    def test_layers_are_few_and_not_wide(self, spec, widths):
        with pytest.raises(HyperparameterError, match="at most 10 whole numbers from 1 to 4096"):
            with_overrides(spec, {"policy_kwargs.net_arch": widths})


def flat(settings, prefix=""):
    """Nested settings on one level."""
    found = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


class TestOverrides:
    def test_one_takes_the_place_of_its_default_and_the_rest_stays(self):
        merged = with_overrides(PPO, {"gamma": 0.9, "policy_kwargs.log_std_init": -2})
        expected = PPO.hyperparameters
        expected["gamma"] = 0.9
        expected["policy_kwargs"]["log_std_init"] = -2
        assert merged == expected

    @pytest.mark.parametrize(
        ("key", "nearest"),
        [
            ("learningrate", "learning_rate"),
            ("policy_kwargs.netarch", "policy_kwargs.net_arch"),
        ],
    )
    def test_an_unknown_key_is_refused_with_the_nearest_and_the_rest(self, key, nearest):
        with pytest.raises(
            HyperparameterError,
            match=rf"^ppo has no hyper-parameter '{key}'\. Did you mean '{nearest}'\? Known: ep",
        ):
            with_overrides(PPO, {key: 1})

    @pytest.mark.parametrize(
        "key", ["policy_kwargs", "gamma.x", "policy_kwargs.net_arch.0", "policy_kwargs.", ".", ""]
    )
    def test_only_single_numbers_and_lists_have_keys(self, key):
        with pytest.raises(HyperparameterError, match="has no hyper-parameter"):
            with_overrides(PPO, {key: {"activation_fn": "anything"}})

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("learning_rate", "fast"),
            ("learning_rate", math.nan),
            ("learning_rate", math.inf),
            ("learning_rate", [0.1]),
            ("learning_rate", None),
            ("learning_rate", True),
            ("n_epochs", -1),
            ("n_epochs", 0),
            ("n_epochs", 2.0),
            ("n_epochs", True),
            ("n_epochs", [3]),
            ("policy_kwargs.net_arch", 64),
            ("policy_kwargs.net_arch", [64, -1]),
            ("policy_kwargs.net_arch", [64.0]),
            ("policy_kwargs.net_arch", ["a"]),
            ("policy_kwargs.net_arch", {"pi": [8]}),
        ],
    )
    def test_a_value_of_another_kind_is_refused(self, key, value):
        with pytest.raises(
            HyperparameterError, match=rf"^ppo: {key} must be a .*, such as its default .*, got "
        ):
            with_overrides(PPO, {key: value})

    def test_whole_numbers_do_where_a_number_is_asked_for(self):
        assert with_overrides(PPO, {"gamma": 1})["gamma"] == 1
