"""Environments in a real Ray cluster of two processes on this machine; processes that die are killed."""

import json
import os
import signal
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize

from prunegym.agents.errors import AgentError
from prunegym.agents.vector import ray_connection
from prunegym.agents.vector.make import vectorized
from prunegym.agents.vector.ray_actor import EnvironmentActor, pack
from prunegym.agents.vector.ray_connection import connected
from tests.agents.conftest import ToyPruning
from tests.agents.learning.test_training import Interrupt, assert_same, quick
from tests.scripts.test_cluster import descendants

pytestmark = pytest.mark.runs

GROUPS = 5


class Uncounted:
    """Stands for the toy's counter, which lives in memory that processes of one machine share."""

    value = 0

    @contextmanager
    def get_lock(self):
        yield


class Mortal(ToyPruning):
    """Kills its process at some of the calls of `reset` and `step`, but not where it was made.

    `deaths` is a folder with a file for each time, `NUMBER-CALL`. They count in their order, in whichever
    process comes to the call first, and each is removed first.
    """

    def __init__(self, deaths):
        super().__init__(GROUPS)
        self.measured = Uncounted()
        self.deaths, self.home, self.calls = deaths, os.getpid(), 0

    def reset(self, **settings):
        self._perhaps_die()
        return super().reset(**settings)

    def step(self, action):
        self._perhaps_die()
        return super().step(action)

    def pid(self):
        return os.getpid()

    def threads(self):
        return torch.get_num_threads()

    def _perhaps_die(self):
        if os.getpid() == self.home:
            return
        self.calls += 1
        for sign in sorted(self.deaths.iterdir())[:1]:
            if sign.name.endswith(f"-{self.calls}"):
                try:
                    sign.unlink()
                except FileNotFoundError:  # the other process was faster
                    continue
                os.kill(os.getpid(), signal.SIGKILL)


class Raising(Mortal):
    def step(self, action):
        if os.getpid() != self.home:
            (self.deaths / "raised").open("a").write("once\n")
            raise AgentError("a mistake of the user's")
        return super().step(action)


@pytest.fixture(scope="module", autouse=True)
def _cluster():
    with connected("local", n_envs=2):
        yield


@pytest.fixture
def mortal(tmp_path):
    """Make an environment that is to die at these calls, one after the other."""

    def make(*calls, kind=Mortal):
        (tmp_path / "deaths").mkdir(exist_ok=True)
        for number, call in enumerate(calls):
            (tmp_path / "deaths" / f"{number}-{call}").touch()
        return kind(tmp_path / "deaths")

    return make


def listening(pids):
    """Return the addresses at which any of these processes listens for TCP, as the kernel writes them."""
    inodes = set()
    for pid in pids:
        with suppress(FileNotFoundError):  # it has ended
            inodes |= {os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")}
    addresses = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        rows = [line.split() for line in Path(table).read_text().splitlines()[1:]]
        addresses |= {
            row[1].partition(":")[0] for row in rows if f"socket:[{row[9]}]" in inodes and row[3] == "0A"
        }
    return addresses


LOOPBACK = {
    "0100007F",
    "0000000000000000FFFF00000100007F",  # the same, mapped
    "00000000000000000000000001000000",  # ::1
}


def test_a_cluster_of_this_machine_alone_cannot_be_reached_from_others(mortal):
    hosted = vectorized(mortal(), n_envs=2, cluster="auto")
    try:
        family = [os.getpid(), *descendants(os.getpid())]
        assert set(hosted.env_method("pid")) < set(family)
        found = listening(family)
    finally:
        hosted.close()
    assert found
    assert found <= LOOPBACK
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert not Path.home().joinpath(".ray").exists()  # its token was for this cluster alone


@pytest.mark.parametrize(
    ("joined", "warned"),
    [
        ("192.0.2.7:6379", True),
        ("head:6379", True),
        ("[2001:db8::7]:6379", True),
        ("127.0.0.1:6379", False),
        ("[::1]:6379", False),
    ],
)
def test_joining_a_cluster_that_others_can_reach_is_said(monkeypatch, caplog, joined, warned):
    class Ray:
        is_initialized = staticmethod(lambda: False)
        init = staticmethod(lambda address, **_: SimpleNamespace(address_info={"gcs_address": joined}))
        shutdown = staticmethod(lambda: None)

    monkeypatch.setattr(ray_connection, "imported_ray", lambda: Ray)
    with connected("auto", n_envs=1):
        pass
    said = f"the Ray cluster {joined} can be reached over the network: "
    assert [record.getMessage().startswith(said) for record in caplog.records] == [True] * warned


def without_clock(infos):
    clocks = [info.get("episode", {}).pop("t", None) for info in infos]
    assert all(clock is None or clock > 0 for clock in clocks)
    return infos


def test_they_are_to_a_learner_what_forks_are_even_if_they_die(mortal, caplog):
    forks = vectorized(mortal(), n_envs=2)
    # at its first reset, with a seed, and after an episode whose result is known
    hosted = vectorized(mortal(1, GROUPS + 5), n_envs=2, cluster="auto")
    try:
        for envs in (forks, hosted):
            envs.set_attr("colour", "red", indices=1)
            envs.set_attr("weight", 7)
            envs.seed(3)
        np.testing.assert_array_equal(hosted.reset(), forks.reset())
        assert hosted.reset_infos == forks.reset_infos
        rng = np.random.default_rng(0)
        for _ in range(2 * GROUPS + 2):
            actions = rng.uniform(-1, 1, (2, 2)).astype(np.float32)
            ours, theirs = hosted.step(actions), forks.step(actions)
            for one, other in zip(ours[:3], theirs[:3], strict=True):
                np.testing.assert_array_equal(one, other)
                assert one.shape == other.shape
            assert repr(without_clock(ours[3])) == repr(without_clock(list(theirs[3])))  # holds arrays
        for envs in (forks, hosted):
            assert envs.get_attr("weight") == [7, 7]
            assert envs.get_attr("colour", indices=[1]) == ["red"]
            assert envs.has_attr("networks")
            assert not envs.has_attr("colour")  # not all have it
            assert envs.env_method("threads") == [1, 1]
            assert envs.env_is_wrapped(Monitor) == [True, True]
            assert envs.env_is_wrapped(VecNormalize, indices=0) == [False]
            assert len({os.getpid(), *envs.env_method("pid")}) == 3
        assert hosted.env_method("episode_start") == forks.env_method("episode_start")
        with pytest.raises(AttributeError, match="nothing"):
            hosted.get_attr("nothing")
        assert hosted.get_attr("known") == forks.get_attr("known")
    finally:
        forks.close()
        hosted.close()
    assert [record.getMessage()[-14:] for record in caplog.records] == ["it is replaced"] * 2


def test_a_run_whose_processes_are_killed_ends_as_one_undisturbed(mortal, caplog):
    expected = quick(mortal(), n_envs=2, episodes=23)
    env = mortal(GROUPS + 5, 4 * (GROUPS + 1))  # in the middle of an episode, and in an evaluation
    assert_same(quick(env, n_envs=2, episodes=23, cluster="auto"), expected)
    assert list(env.deaths.iterdir()) == []
    assert len(caplog.records) == 2


def test_a_step_that_kills_every_process_ends_the_run_which_can_be_resumed(mortal, tmp_path):
    run = {"episodes": 30, "checkpoint": tmp_path / "kept"}
    # what takes over counts from the start of the episode
    env = mortal(19 * (GROUPS + 1), GROUPS + 1, GROUPS + 1)
    with pytest.raises(AgentError, match=r"environment 0 died 3 times at the same step \(.+go on with --res"):
        quick(env, **run, cluster="auto")
    assert_same(quick(mortal(), **run, resume=True), quick(mortal(), episodes=30))


def test_what_an_environment_raises_is_the_users_and_not_tried_again(mortal):
    env = mortal(kind=Raising)
    with pytest.raises(AgentError, match=r"^a mistake of the user's$"):
        quick(env, n_envs=1, episodes=5, cluster="auto")
    assert (env.deaths / "raised").read_text() == "once\n"


def test_an_interruption_leaves_a_run_to_resume_and_the_cluster_to_others(mortal, tmp_path):
    run = {"episodes": 30, "checkpoint": tmp_path / "kept"}
    with pytest.raises(KeyboardInterrupt):
        quick(mortal(), **run, cluster="auto", on_episode=Interrupt(21))
    assert_same(quick(mortal(), **run, resume=True), quick(mortal(), episodes=30))


def test_what_it_knows_of_plans_goes_along(mortal):
    env = mortal()
    known = env.problem.evaluate(
        {name: {"static_ratio": 0.1, "runtime_ratio": 0.0} for name in env.site_names}
    )
    hosted = EnvironmentActor([], pack(env), known=[{**known, "plan": {"another": known["plan"]}}])
    assert len(hosted.get_attr("known")) == 2
    assert json.dumps(known["plan"]) in hosted.get_attr("known")


def test_views_of_a_tensor_are_sent_once(mortal):
    env = mortal()
    images = torch.zeros(1_000_000)
    env.batches = [images[:500_000], images[500_000:]]
    packed = pack(env)
    assert len(packed) < 4_100_000
    batches = EnvironmentActor([], packed, known=()).get_attr("batches")
    batches[0].add_(1)
    assert batches[0].untyped_storage().data_ptr() == batches[1].untyped_storage().data_ptr()
    assert not images.any()


def test_what_cannot_be_sent_is_refused_before_a_cluster_is_sought(env):
    with pytest.raises(AgentError, match=r"cannot be sent to a cluster \(Synchronized objects .+leave out"):
        vectorized(env, n_envs=2, cluster="nowhere:1")  # the toy's counter


def test_a_gpu_in_use_needs_one_in_the_cluster(mortal, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(AgentError, match="the cluster has none; use --device cpu"):
        vectorized(mortal(), n_envs=2, cluster="auto")


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(AgentError, match=r'need ray .+pip install "prunegym\[cluster\]"'),
        connected("auto", n_envs=1),
    ):
        pass
