import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from prunegym.agents.errors import AgentError
from prunegym.agents.vector.make import vectorized
from prunegym.agents.vector.wrappers import RestartableEpisodes


def play(env):
    """Play the episode at hand and return its first observations."""
    for _ in range(5):
        observation, *_ = env.step(np.zeros((env.num_envs, 2), np.float32))
    return observation[:, 0]


def test_one_environment_stays_in_this_process(env):
    envs = vectorized(env)
    assert isinstance(envs, DummyVecEnv)
    assert envs.envs[0].unwrapped is env


def test_several_are_forks_with_one_thread_each(env):
    class Reporting(type(env)):
        def threads(self):
            return torch.get_num_threads()

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    envs = vectorized(Reporting(), n_envs=2)
    try:
        assert isinstance(envs, SubprocVecEnv)
        assert envs.env_method("threads") == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        envs.close()
        torch.set_num_threads(threads)


@pytest.mark.parametrize("networks", [1, 3])
def test_what_the_first_episodes_find_out_is_found_out_once_for_all_processes(toy, networks):
    class Measuring(toy):
        """Finds something out of each network when its turn first comes."""

        def __init__(self):
            super().__init__()
            self.networks = networks
            self.turn, self.seen, self.found = -1, set(), multiprocessing.Value("i", 0)

        def reset(self, *, seed=None, options=None):
            self.turn = (self.turn + 1) % networks if seed is None else 0
            if self.turn not in self.seen:
                self.seen.add(self.turn)
                with self.found.get_lock():
                    self.found.value += 1
            return super().reset(seed=seed)

    env = Measuring()
    envs = vectorized(env, n_envs=2)
    try:
        envs.seed(0)
        envs.reset()
        for _ in range(networks):
            play(envs)
    finally:
        envs.close()
    assert env.found.value == networks


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("method", ["reset", "step"])
def test_what_an_environment_raises_in_its_process_is_raised_here(toy, method, number):
    class Failing(toy):
        failing = False

        def fail_from_now_on(self):
            self.failing = True

        def reset(self, *, seed=None, options=None):
            if self.failing and method == "reset":
                raise AgentError("there is no image")
            return super().reset(seed=seed)

        def step(self, action):
            if self.failing and method == "step":
                raise AgentError("there is no image")
            return super().step(action)

    envs = vectorized(Failing(), n_envs=2)
    try:
        envs.reset()
        envs.env_method("fail_from_now_on", indices=number)
        with pytest.raises(AgentError, match=r"^there is no image$") as caught:
            play(envs)
    finally:
        envs.close()
    assert f"in {method}" in str(caught.value.__cause__)  # where it happened


@pytest.mark.parametrize("number", [0, 1])
def test_a_process_that_is_killed_is_missed_in_one_line(env, number):
    envs = vectorized(env, n_envs=2)
    try:
        envs.reset()
        os.kill(envs.processes[number].pid, signal.SIGKILL)
        with pytest.raises(
            AgentError, match=rf"^the process of environment {number} ended \(exit code -9\); "
        ):
            play(envs)
    finally:
        envs.close()


def test_a_gpu_in_use_does_not_survive_a_fork(env, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(AgentError, match="leave out --n-envs, or use --device cpu"):
        vectorized(env, n_envs=2)
    vectorized(env)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_an_episode_starts_again_from_its_state_whatever_the_seed(env, toy, n_envs):
    envs, others = vectorized(env, n_envs=n_envs), vectorized(toy(), n_envs=n_envs)
    try:
        envs.seed(0)
        envs.reset()
        second = play(envs)
        states = envs.env_method("episode_start")
        third = play(envs)
        for number, state in enumerate(states):
            others.env_method("restart_from", state, indices=number)
        others.seed(77)
        np.testing.assert_array_equal(others.reset()[:, 0], second)
        np.testing.assert_array_equal(play(others), third)
    finally:
        envs.close()
        others.close()


def test_a_state_is_started_from_once(env):
    episodes = RestartableEpisodes(env)
    episodes.reset(seed=0)
    episodes.reset()
    state = episodes.episode_start()
    episodes.restart_from(state)
    first, _ = episodes.reset(seed=5)
    second, _ = episodes.reset(seed=5)
    assert first[0] != second[0]
    assert second[0] == env.reset(seed=5)[0][0]
