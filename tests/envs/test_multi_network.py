"""Two small networks of different length in turn; the name of one holds a slash, as those of a library do."""

import copy
import json

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as check_for_gymnasium
from stable_baselines3.common.env_checker import check_env as check_for_sb3

from prunegym.agents import EpisodeLog
from prunegym.envs import Budget, BudgetRange, MultiNetworkEnv
from prunegym.pruning.errors import PlanError
from tests.agents.conftest import learn
from tests.envs.conftest import make_small_env

FIRST, SECOND = "flatten", "library/concat"
RANGE = BudgetRange(Budget({"macs": 0.4}), Budget({"macs": 0.9}))


@pytest.fixture
def make():
    """Make the environment of both networks; settings go to LayerPruningEnv."""

    def make(**settings):
        return MultiNetworkEnv(
            {FIRST: make_small_env("flatten", **settings), SECOND: make_small_env("concat", **settings)}
        )

    return make


@pytest.fixture
def pair(make):
    return make()


def play(env, wish=0.0, **reset):
    """Play one episode; return its observations, rewards and infos."""
    observation, _ = env.reset(**reset)
    observations, rewards, infos, done = [observation], [], [], False
    while not done:
        observation, reward, done, _, info = env.step(np.array([0.0, wish], dtype=np.float32))
        observations.append(observation)
        rewards.append(reward)
        infos.append(info)
    return np.array(observations), rewards, infos


def networks_of(results):
    return [next(iter(result.plan)).rpartition("/")[0] for result in results]


@pytest.mark.parametrize("settings", [{}, {"budget": RANGE, "dense_reward": True}])
def test_gymnasiums_and_sb3s_checkers_are_silent(make, settings):
    check_for_gymnasium(make(**settings), skip_render_check=True)
    check_for_sb3(make(**settings))


def test_no_network_is_refused():
    with pytest.raises(PlanError, match="there is no network to learn on; name at least one"):
        MultiNetworkEnv({})


def test_it_names_the_groups_of_all_by_network_and_says_how_many_there_are(pair):
    first, second = pair.envs.values()
    assert len(first.site_names) != len(second.site_names)
    assert pair.networks == 2
    assert pair.site_names == (
        *(f"flatten/{group}" for group in first.site_names),
        *(f"library/concat/{group}" for group in second.site_names),
    )


def test_turns_alternate_and_each_is_an_episode_of_its_network_alone(pair):
    for turn in range(4):
        name, alone = [(FIRST, "flatten"), (SECOND, "concat")][turn % 2]
        observations, rewards, infos = play(pair, wish=0.3)
        own_observations, own_rewards, own_infos = play(make_small_env(alone), wish=0.3)
        np.testing.assert_array_equal(observations, own_observations)
        assert rewards == own_rewards
        assert [info["site"] for info in infos] == [f"{name}/{info['site']}" for info in own_infos]
        result, own = infos[-1]["episode_result"], own_infos[-1]["episode_result"]
        assert result["plan"] == {f"{name}/{group}": one for group, one in own["plan"].items()}
        assert {**result, "plan": None} == {**own, "plan": None}


def test_a_seed_begins_a_round_and_repeats_it(make):
    pair = make(budget=RANGE)
    play(pair, seed=0)
    rounds = [[play(pair, seed=seed)[0], play(pair)[0]] for seed in (3, 3, 4)]
    for one, same, other in zip(*rounds, strict=True):
        np.testing.assert_array_equal(one, same)
        assert not np.array_equal(one, other)


def test_a_state_brings_back_turn_and_random_numbers(make):
    pair, other = make(budget=RANGE), make(budget=RANGE)
    play(pair, seed=0)
    state = json.loads(json.dumps(pair.episode_state()))
    second, third = play(pair)[0], play(pair)[0]
    other.restore_episode_state(state)
    np.testing.assert_array_equal(play(other)[0], second)
    np.testing.assert_array_equal(play(other)[0], third)


def test_what_is_remembered_reaches_its_network(make, monkeypatch):
    pair, other = make(), make()
    results = [
        play(pair, wish=0.4, seed=0)[2][-1]["episode_result"],
        play(pair, wish=0.4)[2][-1]["episode_result"],
    ]
    before = copy.deepcopy(results)
    play(other, seed=0)
    play(other)  # uniform plans, to which rewards refer
    for result in results:
        other.remember(result)
    assert results == before
    monkeypatch.setattr("prunegym.envs.objectives.predictions", None)  # another evaluation would call it
    assert [play(other, wish=0.4, seed=0)[2][-1], play(other, wish=0.4)[2][-1]] == [
        {"site": list(result["plan"])[-1], "episode_result": result} for result in results
    ]


class TestLearning:
    def run(self, env, folder, **settings):
        return learn(
            env,
            episodes=22,
            seed=0,
            hyperparameters={"n_epochs": 2},
            checkpoint=folder / "checkpoint",
            log=EpisodeLog(folder / "episodes.jsonl"),
            **settings,
        )

    @pytest.mark.parametrize("n_envs", [1, 2])
    def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(self, make, tmp_path, n_envs):
        seen = []

        def interrupt(result):
            seen.append(result)
            if len(seen) == 13:
                raise KeyboardInterrupt

        settings = {"n_envs": n_envs}
        for name in ("straight", "cut"):
            (tmp_path / name).mkdir()
        straight = self.run(make(budget=RANGE), tmp_path / "straight", **settings)
        with pytest.raises(KeyboardInterrupt):
            self.run(make(budget=RANGE), tmp_path / "cut", **settings, on_episode=interrupt)
        resumed = self.run(make(budget=RANGE), tmp_path / "cut", **settings, resume=True)
        for one, other in zip(
            straight.model.policy.parameters(), resumed.model.policy.parameters(), strict=True
        ):
            assert torch.equal(one, other)
        assert (straight.best, straight.final, straight.episodes) == (
            resumed.best,
            resumed.final,
            resumed.episodes,
        )
        logs = [(tmp_path / name / "episodes.jsonl").read_text() for name in ("straight", "cut")]
        assert logs[0] == logs[1]

    @pytest.mark.parametrize("names", [["flatten", "concat"], ["concat", "flatten"]])
    @pytest.mark.parametrize("episodes", [1, 2, 9, 16, 17, 18])
    def test_exactly_the_asked_episodes_are_evaluated_whichever_network_is_longer(self, names, episodes):
        env, seen = MultiNetworkEnv({name: make_small_env(name) for name in names}), []
        result = learn(
            env, episodes=episodes, seed=0, hyperparameters={"n_epochs": 1}, on_episode=seen.append
        )
        assert len(seen) == result.episodes == episodes
        assert networks_of(seen[:-1]) == [names[turn % 2] for turn in range(episodes - 1)]
        assert networks_of(seen[-1:]) == names[:1]


def test_imagined_episodes_take_turns_and_predict_by_full_names(pair):
    asked = []
    twin = pair.surrogate_env(lambda plan, expected: asked.append(plan) or 0.1)
    for turn in range(3):
        infos = play(twin, wish=0.3, **({} if turn else {"seed": 0}))[2]
        real = play(pair, wish=0.3, **({} if turn else {"seed": 0}))[2]
        assert [info["site"] for info in infos] == [info["site"] for info in real]
        assert infos[-1]["episode_result"]["plan"] == real[-1]["episode_result"]["plan"] == asked[-1]
        assert infos[-1]["episode_result"]["reward"]["total"] == pytest.approx(np.exp(-0.1))
