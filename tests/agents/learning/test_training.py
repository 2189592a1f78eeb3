"""Learning on the toy environment: what holds for every algorithm, and for runs that are interrupted."""

import json
import multiprocessing
import tempfile
from functools import cache, reduce
from operator import getitem

import numpy as np
import pytest
import torch

from prunegym.agents.episode_log import EpisodeLog
from prunegym.agents.errors import (
    AgentError,
    CheckpointError,
    HyperparameterError,
    PolicyError,
)
from prunegym.agents.learning.algorithms import ALGORITHMS
from prunegym.agents.learning.checkpoints import STATE
from prunegym.agents.learning.policies import load_policy, save_policy
from prunegym.agents.rollout import deterministic, run_episode
from prunegym.agents.search import search
from prunegym.pruning.errors import UnknownNameError
from prunegym.pruning.files.state import read_state, write_state
from tests.agents.conftest import ToyPruning, learn

# as tuned, but small and quick: what is tested here does not depend on their size
QUICK = {
    "dyna-ppo": {
        "n_epochs": 2,
        "evaluated_episodes": 8,
        "warmup_episodes": 8,
        "imagined_episodes": 16,
        "episodes_per_update": 8,
    },
    "ppo": {"n_epochs": 2},
    "sac": {"updates_per_step": 1, "batch_size": 16, "warmup_episodes": 6},
    "td3": {"updates_per_step": 1, "batch_size": 16, "warmup_episodes": 10},  # longer than to a checkpoint
    "ddpg": {"updates_per_step": 1, "batch_size": 16, "warmup_episodes": 6},
    "amc": {"warmup_episodes": 6, "batch_size": 16},
}
every_algorithm = pytest.mark.parametrize("name", list(ALGORITHMS))


def quick(env, name="ppo", *, episodes, seed=0, **settings):
    small = {} if settings.get("initial_policy") else {"policy_kwargs.net_arch": [16, 16]}
    return learn(
        env, algorithm=name, episodes=episodes, seed=seed, hyperparameters=QUICK[name] | small, **settings
    )


class Interrupt:
    """Raises after so many episodes, as Ctrl-C would."""

    def __init__(self, episodes):
        self.left = episodes
        self.seen = []

    def __call__(self, result):
        self.seen.append(result)
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def weights(result):
    return torch.cat([tensor.flatten().double() for tensor in result.model.policy.state_dict().values()])


def assert_same(one, other):
    """Two results end with the very same policy and plans."""
    assert torch.equal(weights(one), weights(other))
    assert (one.best, one.final, one.episodes) == (other.best, other.final, other.episodes)


@pytest.fixture
def start(tmp_path):
    """Begin or resume a run in a folder, as `train` does; return what came of it."""

    def start(env, folder, **settings):
        run = {"checkpoint": tmp_path / folder, "log": EpisodeLog(tmp_path / f"{folder}.jsonl")}
        return quick(env, **run, **settings)

    start.log = lambda folder: (tmp_path / f"{folder}.jsonl").read_text()
    start.folder = tmp_path
    return start


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """What comes of a run of 24 episodes in one go, its log, and how many plans it evaluated."""

    @cache
    def run(name):
        env, log = ToyPruning(), tmp_path_factory.mktemp("straight") / "log.jsonl"
        torch.manual_seed(0)
        result = quick(env, name, episodes=24, checkpoint=log.with_name("run"), log=EpisodeLog(log))
        return result, log.read_text(), env.measured.value

    return run


@pytest.fixture
def interrupted(toy, tmp_path):
    """The folder of a run of 40 episodes that stopped in the 21st."""
    with pytest.raises(KeyboardInterrupt):
        quick(toy(), episodes=40, seed=1, checkpoint=tmp_path, on_episode=Interrupt(21))
    return tmp_path


class TestEveryAlgorithm:
    # none learned from; part of a round of updates; a whole one; warmed up; between
    @pytest.mark.parametrize("episodes", [1, 2, 9, 20])
    @every_algorithm
    def test_spends_exactly_its_episodes(self, env, name, episodes):
        seen = []
        result = quick(env, name, episodes=episodes, on_episode=seen.append)
        assert env.evaluations == len(seen) == result.episodes == episodes
        assert isinstance(result.model, ALGORITHMS[name].model_class)
        assert result.final == seen[-1]
        assert result.best.total == max(episode.total for episode in seen[:-1] or seen)

    @every_algorithm
    def test_the_same_seed_gives_the_same_policy_and_plans_and_another_others(self, toy, name):
        first, same, other = (quick(toy(), name, episodes=12, seed=seed) for seed in (0, 0, 1))
        assert_same(first, same)
        assert not torch.equal(weights(first), weights(other))
        assert first.best != other.best

    @every_algorithm
    def test_it_learns(self, toy, name):
        untrained, trained = (quick(toy(), name, episodes=episodes) for episodes in (2, 17))
        assert not torch.equal(weights(untrained), weights(trained))

    @every_algorithm
    def test_a_policy_saved_and_loaded_decides_the_same(self, env, name, tmp_path):
        model = quick(env, name, episodes=10).model
        save_policy(model, env, tmp_path, learned_on={})
        act = deterministic(load_policy(tmp_path, env).build(env))
        for _ in range(20):
            observation = env.observation_space.sample()
            np.testing.assert_array_equal(act(observation), model.predict(observation, deterministic=True)[0])

    @pytest.mark.parametrize("at", [3, 8, 13, 24])  # checkpoints come after 8 and 16 episodes
    @every_algorithm
    def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(self, toy, start, straight, name, at):
        before, after = toy(), toy()
        expected, log, measured = straight(name)
        with pytest.raises(KeyboardInterrupt):
            start(before, "cut", name=name, episodes=24, on_episode=Interrupt(at))
        torch.manual_seed(99)  # whatever happened in between must not matter
        np.random.seed(99)  # noqa: NPY002
        assert_same(expected, start(after, "cut", name=name, episodes=24, resume=True))
        assert start.log("cut") == log
        assert before.measured.value + after.measured.value == measured

    @every_algorithm
    def test_a_policy_is_gone_on_from(self, toy, tmp_path, name):
        model = quick(toy(), name, episodes=17).model
        save_policy(model, toy(), tmp_path, learned_on={})
        policy = load_policy(tmp_path, toy())
        continued = quick(toy(), name, episodes=1, seed=5, initial_policy=policy)
        assert continued.final.plan == run_episode(toy(), deterministic(model), seed=5).plan
        assert continued.final.plan != quick(toy(), name, episodes=1, seed=5).final.plan


class TestLearning:
    def test_the_default_beats_uniform_and_random_search(self, env, toy):
        learned = learn(env, episodes=150, seed=0)
        found = search(toy(), "random", admitted=env.admitted, episodes=150, seed=0).best
        uniform = run_episode(toy(), lambda observation: np.zeros(2, np.float32))
        assert learned.final.total > found.total + 0.03 > uniform.total + 0.1

    def test_the_last_whole_rollout_is_learned_from(self, toy):
        without, with_update = (quick(toy(), episodes=episodes) for episodes in (8, 9))
        assert not torch.equal(weights(without), weights(with_update))

    def test_hyperparameters_reach_the_model(self, toy):
        model = quick(toy(), episodes=1).model
        assert (model.n_epochs, model.policy_kwargs["net_arch"]) == (2, [16, 16])

    def test_mistakes_are_refused(self, env):
        with pytest.raises(UnknownNameError):
            learn(env, algorithm="nope", episodes=3, seed=0)
        with pytest.raises(AgentError, match="episodes must be 1 or more"):
            learn(env, episodes=0, seed=0)
        with pytest.raises(AgentError, match="number of environments must be 1 or more, got 0"):
            learn(env, episodes=3, seed=0, n_envs=0)
        with pytest.raises(HyperparameterError, match="ppo has no hyper-parameter 'tau'"):
            learn(env, episodes=3, seed=0, hyperparameters={"tau": 0.1})
        assert env.evaluations == 0

    def test_the_policy_of_another_algorithm_is_refused(self, env, tmp_path):
        save_policy(quick(env, "td3", episodes=1).model, env, tmp_path, learned_on={})
        with pytest.raises(PolicyError, match="is a policy of td3, not of dyna-ppo; use --algo td3"):
            learn(env, episodes=3, seed=0, initial_policy=load_policy(tmp_path, env))


class TestResume:
    def test_without_a_log_only_the_checkpoint_is_known(self, toy, interrupted):
        env = toy()
        straight = quick(toy(), episodes=40, seed=1)
        assert_same(straight, quick(env, episodes=40, seed=1, checkpoint=interrupted, resume=True))
        assert env.evaluations == 40 - 16  # two updates of eight episodes were kept

    def test_a_run_killed_again_before_it_caught_up_still_loses_nothing(self, toy, start):
        envs = [toy() for _ in range(4)]
        expected = start(envs[0], "straight", episodes=24)
        for env, at in [(envs[1], 23), (envs[2], 2)]:  # the second time in the 18th
            with pytest.raises(KeyboardInterrupt):
                start(env, "cut", episodes=24, resume=True, on_episode=Interrupt(at))
        assert_same(expected, start(envs[3], "cut", episodes=24, resume=True))
        assert start.log("cut") == start.log("straight")
        assert [env.measured.value for env in envs] == [24, 23, 0, 1]

    def test_what_the_policy_decides_in_the_end_follows_from_the_seed(self, toy):
        class Shifted(toy):  # actions mean something else in each episode
            def _plan(self):
                plan = super()._plan()
                plan["layer0.conv"]["static_ratio"] = self._noise
                return plan

        finals = [quick(Shifted(), episodes=9, n_envs=count).final for count in (1, 1, 2, 2)]
        assert finals[0] == finals[1]
        assert finals[2] == finals[3]

    def test_nothing_is_left_among_the_temporary_files(self, toy, start, monkeypatch):
        monkeypatch.setattr(tempfile, "tempdir", str(start.folder / "temporary"))
        for episodes in (12, 20):
            start(toy(), "cut", episodes=episodes, resume=True)
        assert not (start.folder / "temporary").exists()

    def test_a_listener_that_raises_loses_no_evaluation(self, toy, start):
        with pytest.raises(KeyboardInterrupt):
            start(toy(), "cut", episodes=24, on_episode=Interrupt(3))
        assert len(start.log("cut").splitlines()) == 3

    def test_what_others_wrote_into_the_log_stays(self, toy, start):
        other = run_episode(toy(), lambda observation: np.zeros(2, np.float32))
        EpisodeLog(start.folder / "cut.jsonl").append("random", other)
        with pytest.raises(KeyboardInterrupt):
            start(toy(), "cut", episodes=24, on_episode=Interrupt(3))
        start(toy(), "cut", episodes=24, resume=True)
        authors = [by for by, _ in EpisodeLog(start.folder / "cut.jsonl").entries()]
        assert authors == ["random"] + ["ppo"] * 24

    def test_a_policy_to_go_on_from_is_not_loaded_again(self, toy, start, tmp_path):
        save_policy(quick(toy(), episodes=9).model, toy(), tmp_path, learned_on={})
        policy = load_policy(tmp_path, toy())
        expected = start(toy(), "straight", episodes=24, initial_policy=policy)
        with pytest.raises(KeyboardInterrupt):
            start(toy(), "cut", episodes=24, initial_policy=policy, on_episode=Interrupt(12))
        assert_same(expected, start(toy(), "cut", episodes=24, initial_policy=policy, resume=True))

    def test_the_best_plan_of_before_the_interruption_is_kept(self, toy, tmp_path):
        watch = Interrupt(17)
        with pytest.raises(KeyboardInterrupt):
            quick(toy(), episodes=40, checkpoint=tmp_path, on_episode=watch)
        resumed = quick(toy(), episodes=17, checkpoint=tmp_path, resume=True)
        assert resumed.best == max(watch.seen[:16], key=lambda result: result.total)

    def test_one_checkpoint_is_kept_and_nothing_half_written(self, interrupted):
        assert [path.name for path in interrupted.iterdir()] == [STATE]

    def test_a_gpu_that_is_not_in_use_is_left_alone(self, toy, tmp_path, monkeypatch):
        monkeypatch.setattr("torch.cuda.random.device_count", lambda: 1)
        quick(toy(), episodes=20, checkpoint=tmp_path)
        resumed = quick(toy(), episodes=30, checkpoint=tmp_path, resume=True)
        assert resumed.episodes == 30

    def test_of_the_replay_buffer_the_steps_taken_are_kept(self, toy, tmp_path):
        quick(toy(), "td3", episodes=20, checkpoint=tmp_path)
        _, tensors = read_state(tmp_path / STATE)
        assert len(tensors["replay/rewards"]) == 16 * len(toy().site_names)

    @pytest.mark.parametrize("name", ["ppo", "td3"])
    def test_a_death_while_writing_leaves_the_last_checkpoint(self, toy, start, name, monkeypatch):
        def die(*arguments, **keywords):
            raise SystemExit

        expected = start(toy(), "straight", name=name, episodes=24)
        with pytest.raises(KeyboardInterrupt):
            start(toy(), "cut", name=name, episodes=24, on_episode=Interrupt(12))
        with monkeypatch.context() as patch:
            patch.setattr("prunegym.pruning.files.writing.os.replace", die)  # all is written but for its name
            with pytest.raises(SystemExit):
                start(toy(), "cut", name=name, episodes=24, resume=True)
        assert_same(expected, start(toy(), "cut", name=name, episodes=24, resume=True))

    def test_before_the_first_checkpoint_the_run_begins(self, toy, tmp_path):
        resumed = quick(toy(), episodes=9, checkpoint=tmp_path / "none yet", resume=True)
        assert_same(resumed, quick(toy(), episodes=9))

    def test_a_checkpoint_of_another_run_is_refused(self, toy, interrupted):
        again = {"checkpoint": interrupted, "resume": True}
        with pytest.raises(CheckpointError, match=r"was made with seed 1, this run has 2; resume with"):
            quick(toy(), episodes=40, seed=2, **again)
        with pytest.raises(CheckpointError, match="was made with sites"):
            quick(toy(3), episodes=40, seed=1, **again)
        with pytest.raises(CheckpointError, match="was made with algorithm 'ppo', this run has 'td3'"):
            quick(toy(), "td3", episodes=40, seed=1, **again)
        with pytest.raises(CheckpointError, match="was made with hyperparameters"):
            learn(toy(), algorithm="ppo", episodes=40, seed=1, **again)
        with pytest.raises(CheckpointError, match="was made with environments 1, this run has 2"):
            quick(toy(), episodes=40, seed=1, n_envs=2, **again)

    def test_another_policy_to_go_on_from_is_refused(self, toy, interrupted, tmp_path):
        (tmp_path / "policy").mkdir()
        save_policy(quick(toy(), episodes=1).model, toy(), tmp_path / "policy", learned_on={})
        policy = load_policy(tmp_path / "policy", toy())
        with pytest.raises(CheckpointError, match="was made with initial policy None, this run has '"):
            quick(toy(), episodes=40, seed=1, initial_policy=policy, checkpoint=interrupted, resume=True)

    def test_another_networks_log_is_not_read_before_its_checkpoint_is_refused(self, toy, start):
        with pytest.raises(KeyboardInterrupt):
            start(toy(), "cut", episodes=24, on_episode=Interrupt(12))

        class Other(toy):
            def remember(self, result):
                raise KeyError(next(iter(result["plan"])))

        with pytest.raises(CheckpointError, match="was made with sites"):
            start(Other(3), "cut", episodes=24, resume=True)

    def test_a_checkpoint_with_as_many_episodes_is_refused(self, toy, interrupted):
        with pytest.raises(CheckpointError, match="already holds 16 episodes of 16 in all; ask for more"):
            quick(toy(), episodes=16, seed=1, checkpoint=interrupted, resume=True)

    @pytest.mark.parametrize("damage", ["cut", "empty", "text", "flipped"])
    def test_a_damaged_checkpoint_is_refused_in_one_line(self, toy, interrupted, damage):
        content = (interrupted / STATE).read_bytes()
        flipped = content[:-1] + bytes([content[-1] ^ 1])  # a state that can be read and was never written
        damaged = {"cut": content[:100], "empty": b"", "text": b"hello", "flipped": flipped}[damage]
        (interrupted / STATE).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=rf"^cannot read .*{STATE}.*; remove .* and resume"):
            quick(toy(), episodes=40, seed=1, checkpoint=interrupted, resume=True)

    @pytest.mark.parametrize(
        ("algorithm", "place", "junk"),
        [
            ("ppo", ("model", "num_timesteps"), "many"),
            ("td3", ("model", "replay", "pos"), 10**12),
            ("amc", ("model", "own", "average_reward"), []),
            ("dyna-ppo", ("model", "own", "losses", 0, "plans"), [["x"]]),
            ("dyna-ppo", ("model", "own", "losses", 0, "process", "noise"), {}),
            ("ppo", ("random", "torch"), [1, 2]),
            ("ppo", ("random", "numpy"), []),
            ("ppo", ("random", "environments"), 7),
            ("ppo", ("history", "plans"), None),
            ("ppo", ("history", "best"), [1]),
            ("ppo", ("history", "best", "plan"), {"a": [[[]]]}),
            ("ppo", ("history", "plans"), [{"a": {"static_ratio": {}}}]),
        ],
    )
    def test_a_record_that_somebody_changed_is_refused_in_one_line(
        self, toy, tmp_path, algorithm, place, junk
    ):
        quick(toy(), algorithm, episodes=20, checkpoint=tmp_path)
        record, tensors = read_state(tmp_path / STATE)
        *way, last = place
        reduce(getitem, way, record)[last] = junk
        write_state(tmp_path / STATE, record, tensors)
        with pytest.raises(CheckpointError, match=rf"^cannot read .*{STATE}.*; remove .* and resume"):
            quick(toy(), algorithm, episodes=40, checkpoint=tmp_path, resume=True)

    @pytest.mark.parametrize("n_envs", [1, 2])
    def test_a_state_that_no_environment_has_is_refused_in_one_line(self, toy, tmp_path, n_envs):
        quick(toy(), "ppo", episodes=20, checkpoint=tmp_path, n_envs=n_envs)
        record, tensors = read_state(tmp_path / STATE)
        record["random"]["environments"][0]["random"] = "x"
        write_state(tmp_path / STATE, record, tensors)
        with pytest.raises(CheckpointError, match=r"holds no state of an environment .*; remove the folder"):
            quick(toy(), "ppo", episodes=40, checkpoint=tmp_path, resume=True, n_envs=n_envs)

    def test_tensors_that_somebody_changed_are_refused_in_one_line(self, toy, tmp_path):
        quick(toy(), "td3", episodes=20, checkpoint=tmp_path)
        record, tensors = read_state(tmp_path / STATE)
        assert any(name.startswith("critic.optimizer/") for name in tensors)
        for name, tensor in tensors.items():
            write_state(tmp_path / STATE, record, tensors | {name: torch.cat([tensor[None], tensor[None]])})
            with pytest.raises(CheckpointError, match=rf"^cannot read .*{STATE}"):
                quick(toy(), "td3", episodes=40, checkpoint=tmp_path, resume=True)


class TestSeveralEnvironments:
    @pytest.mark.parametrize("episodes", [1, 2, 9, 20, 21])
    def test_as_many_evaluations_are_spent_as_by_one(self, toy, episodes):
        env, seen = toy(), []
        result = quick(env, episodes=episodes, n_envs=2, on_episode=seen.append)
        assert env.measured.value == len(seen) == result.episodes == episodes

    def test_what_does_not_fill_a_round_explores(self, toy):
        seen = []
        result = quick(toy(), episodes=12, n_envs=4, on_episode=seen.append)
        plans = [json.dumps(one.plan) for one in seen]
        assert len(set(plans)) == 12
        assert result.best == max(seen[:-1], key=lambda one: one.total)
        assert result.final == seen[-1]

    def test_each_explores_differently_and_starts_from_what_is_known(self, toy):
        env, first, again = toy(), [], []
        quick(env, episodes=9, n_envs=2, on_episode=first.append)
        assert len({str(result.plan) for result in first}) == 9
        for result in first:
            env.remember(result.to_dict())
        quick(env, episodes=9, n_envs=2, on_episode=again.append)
        assert first == again
        assert env.measured.value == 9

    @pytest.mark.parametrize("at", [5, 13])
    @pytest.mark.parametrize("name", ["ppo", "td3"])
    def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(self, toy, start, straight, name, at):
        straight, before, after = toy(), toy(), toy()
        run = {"name": name, "episodes": 21, "n_envs": 2}
        expected = start(straight, "straight", **run)
        with pytest.raises(KeyboardInterrupt):
            start(before, "cut", **run, on_episode=Interrupt(at))
        assert_same(expected, start(after, "cut", **run, resume=True))
        assert start.log("cut") == start.log("straight")
        # the other environment's episode ended in the same step, and was not yet written
        assert before.measured.value + after.measured.value == straight.measured.value + 1

    def test_no_process_outlives_the_run(self, toy):
        with pytest.raises(KeyboardInterrupt):
            quick(toy(), episodes=9, n_envs=2, on_episode=Interrupt(3))
        assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("networks", "algorithm", "overrides", "layers", "decay"),
    [
        (1, "dyna-ppo", {}, [64, 64], 0.0),
        (1, "ppo", {"weight_decay": 0.1}, [64, 64], 0.1),
        (5, "dyna-ppo", {}, [], 0.2),
        (5, "ppo", {"policy_kwargs.net_arch": [8]}, [8], 0.2),
        (5, "ppo", {"weight_decay": 0.0}, [], 0.0),
    ],
)
def test_a_policy_for_several_networks_is_linear_and_decays(
    toy, networks, algorithm, overrides, layers, decay
):
    env = toy()
    env.networks = networks  # of one group each
    model = learn(env, algorithm=algorithm, episodes=1, seed=0, hyperparameters=overrides).model
    assert model.policy_kwargs["net_arch"] == layers
    assert model.policy.optimizer.defaults["weight_decay"] == decay


def test_other_algorithms_learn_on_several_networks_as_on_one(toy):
    env = toy()
    env.networks = 5
    assert learn(env, algorithm="td3", episodes=1, seed=0).model.policy_kwargs["net_arch"] == [64, 64]
