"""One environment, or several processes of it that share the network and the images."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import connection, parent_process
from multiprocessing.process import BaseProcess
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from agents.errors import AgentError
from agents.interface import Action, GymEnv, Observation, episodic_environment

INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM)
FAILURE = "failure"  # in an info: what the environment raised, and where, as text


class RestartableEpisodes(gym.Wrapper[Observation, Action, Observation, Action]):
    """Remembers the state each episode starts from, so that a resumed run can start it again."""

    def __init__(self, env: GymEnv) -> None:
        super().__init__(env)
        self.start_state: Mapping[str, Any] = {}
        self._restart_from: Mapping[str, Any] | None = None

    def episode_start(self) -> Mapping[str, Any]:
        """Return what the episode at hand started from, as plain data."""
        return self.start_state

    def restart_from(self, state: Mapping[str, Any]) -> None:
        """Let the next episode start from this state, whatever seed it is given."""
        self._restart_from = state

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; see the class."""
        environment = episodic_environment(self.env)
        if self._restart_from is not None:
            environment.restore_episode_state(self._restart_from)
            seed = self._restart_from = None
        self.start_state = environment.episode_state()
        return self.env.reset(seed=seed, options=options)


class ReportedFailures(gym.Wrapper[Observation, Action, Observation, Action]):
    """Hands on what the environment raises, in the info, where its process would end with a traceback."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; see the class."""
        try:
            return self.env.reset(seed=seed, options=options)
        except Exception as error:
            return self._nothing(), {FAILURE: (error, traceback.format_exc())}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take a step; see the class."""
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
        except Exception as error:
            return self._nothing(), 0.0, False, False, {FAILURE: (error, traceback.format_exc())}
        return observation, float(reward), terminated, truncated, info

    def _nothing(self) -> Observation:
        assert self.observation_space.shape is not None
        return np.zeros(self.observation_space.shape, dtype=np.float32)


class _Answers:
    """The near end of the pipe to a process: what `recv` waits for may be that the process ended."""

    def __init__(self, number: int, pipe: connection.Connection, process: BaseProcess) -> None:
        self._number = number
        self._pipe = pipe
        self._process = process
        self.send, self.close = pipe.send, pipe.close

    def recv(self) -> Any:
        """Return the answer.

        Raises:
            AgentError: the process ended without one.
            Exception: what the environment raised.
        """
        # the pipe alone does not tell of an end: processes that were forked later hold its far end open
        connection.wait([self._pipe, self._process.sentinel])
        try:
            if not self._pipe.poll():
                raise EOFError
            answer = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join()
            raise AgentError(
                f"the process of environment {self._number} ended (exit code {self._process.exitcode}); "
                "see to the cause, perhaps to memory, and go on with --resume"
            ) from error
        for part in answer if isinstance(answer, tuple) else ():
            if isinstance(part, dict) and FAILURE in part:
                raised, story = part[FAILURE]
                raise raised from RuntimeError(story)
        return answer


class Workers(SubprocVecEnv):
    """Environments in forked processes, which end with this one, however it ends.

    Args:
        starts: one for each process, called there; each calls `follow_parent` before all else.
    """

    remotes: Sequence[Any]

    def __init__(self, starts: Sequence[Callable[[], GymEnv]]) -> None:
        # held back meanwhile: a fork begins with this process's handlers, and would end in a traceback
        held = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTIONS)
        try:
            super().__init__(list(starts), start_method="fork")
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        ends = zip(self.remotes, self.processes, strict=True)
        self.remotes = [_Answers(number, *end) for number, end in enumerate(ends)]

    def close(self) -> None:
        """End the processes at once; they have nothing to put away.

        Stable-Baselines3 would first await the step at hand, and for ever if some of it was received already.
        """
        for process in self.processes:
            process.terminate()
        for process, remote in zip(self.processes, self.remotes, strict=True):
            process.join()
            remote.close()
        self.closed = True


def follow_parent() -> None:
    """Leave it to the parent to end this process: on its request, or by ending itself, be it by SIGKILL."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to parent and children alike
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTIONS)
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        # the pipe of commands does not tell: its far end is open in the siblings that were forked later
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def vectorized(env: GymEnv, *, n_envs: int = 1, cluster: str | None = None) -> VecEnv:
    """Return `n_envs` environments that step in lockstep, each in a process of its own with one thread.

    The processes are forks: network, images and what is known of plans are shared, not copied. So each
    network's first episode is begun here before: what that finds out, they would each find out again. One
    environment stays in this process, unless there is a cluster.

    Args:
        env: all are like it.
        n_envs: how many.
        cluster: address of the Ray cluster whose processes are used, see `agents.cluster.connected`; None
            for forks.

    Raises:
        AgentError: fewer than one, or several where CUDA is in use, which does not survive a fork; or see
            `agents.cluster.ClusterWorkers`.
    """
    if n_envs < 1:
        raise AgentError(f"the number of environments must be 1 or more, got {n_envs}")
    if n_envs == 1 and cluster is None:
        return DummyVecEnv([lambda: Monitor(RestartableEpisodes(env))])
    if torch.cuda.is_initialized() and cluster is None:
        raise AgentError(
            "several environments need processes, which cannot share a GPU that is in use; "
            "leave out --n-envs, or use --device cpu, or --cluster"
        )
    for _ in range(episodic_environment(env).networks):
        env.reset()
    if cluster is not None:
        from agents.cluster import ClusterWorkers  # late: it builds on this module

        return ClusterWorkers(env, n_envs=n_envs, address=cluster)

    def start() -> GymEnv:
        follow_parent()
        torch.set_num_threads(1)
        return ReportedFailures(Monitor(RestartableEpisodes(env)))

    return Workers([start] * n_envs)
