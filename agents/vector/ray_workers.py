"""A vector of environments on a Ray cluster; if a process dies, another one repeats its episode."""

from __future__ import annotations

import logging
import math
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from prunegym.agents.errors import AgentError
from prunegym.agents.interface import GymEnv
from prunegym.agents.vector.ray_actor import EnvironmentActor, Result, Step, pack
from prunegym.agents.vector.ray_connection import connected, imported_ray
from prunegym.agents.vector.wrappers import RestartableEpisodes

logger = logging.getLogger(__name__)

MAX_DEATHS_PER_CALL = 3  # after so many deaths at the same call, the call is taken for the cause
Call: TypeAlias = tuple[str, tuple[Any, ...], Mapping[str, Any]]  # of a method of EnvironmentActor


class Worker:
    """A process of the cluster; after its death, another process that has repeated its episode so far.

    Args:
        index: index of the environment, for messages.
        start_actor: starts a process that knows the results of some episodes, and returns its Ray actor.
    """

    reply: Future[Any]  # to the last call

    def __init__(self, index: int, start_actor: Callable[[Sequence[Result]], Any]) -> None:
        self._index = index
        self._start_actor = start_actor
        self._results: list[Result] = []  # of the finished episodes
        self._calls: list[Call] = []  # since the start of the episode; they lead to its current state
        self._deaths = 0  # since the last reply
        self._actor = start_actor(())

    def send(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Call a method of the EnvironmentActor."""
        self._calls.append((method, args, kwargs))
        self._send_to_actor(self._calls[-1])

    def has_replied(self) -> bool:
        """Return whether there is a reply to the last call; if the process died, replace it.

        Raises:
            AgentError: the process has died MAX_DEATHS_PER_CALL times at this call.
            Exception: the exception that the environment raised.
        """
        if not self.reply.done():
            return False
        error = self.reply.exception()
        if isinstance(error, imported_ray().exceptions.RayTaskError):
            raise error.cause from error  # with its own message instead of Ray's stack trace
        if error is not None:
            self._replace(error)
            return False
        self._deaths = 0
        return True

    def begin_episode(self, start: Mapping[str, Any], previous: Result) -> None:
        """Store an episode's start and the result of the previous one, in case the process is replaced."""
        self._results.append(previous)
        permanent = [call for call in self._calls if call[0] == "set_attr"]
        self._calls = [*permanent, ("env_method", ("restart_from", start), {}), ("reset", (None, {}), {})]

    def kill(self) -> None:
        """End the process at once, whatever it is doing."""
        imported_ray().kill(self._actor)

    def _send_to_actor(self, call: Call) -> None:
        method, args, kwargs = call
        # a future, as `ray.get` turns any exception of a signal handler into KeyboardInterrupt
        self.reply = getattr(self._actor, method).remote(*args, **kwargs).future()

    def _replace(self, error: BaseException) -> None:
        """Start another process and repeat the episode's calls in it."""
        self._deaths += 1
        cause = textwrap.shorten(str(error).strip().rpartition("\n")[2], 200)
        if self._deaths == MAX_DEATHS_PER_CALL:
            raise AgentError(
                f"the process of environment {self._index} died {MAX_DEATHS_PER_CALL} times "
                f"at the same step ({cause}); see to the cause, perhaps to memory, and go on with --resume"
            ) from error
        logger.warning("the process of environment %d died (%s); it is replaced", self._index, cause)
        self.kill()  # it may be alive but out of reach
        self._actor = self._start_actor(self._results)
        for call in self._calls:
            self._send_to_actor(call)


class RayVecEnv(VecEnv):
    """Environments that step in lockstep, each in a process of a Ray cluster with one thread.

    Args:
        env: the environment to replicate; it is sent once to each machine.
        n_envs: number of environments.
        address: address of the cluster, see `connected`.

    Raises:
        AgentError: see `connected` and `pack`; or CUDA is in use and the cluster has no GPU.
    """

    def __init__(self, env: GymEnv, *, n_envs: int, address: str) -> None:
        packed = pack(env)
        self._local_env = Monitor(RestartableEpisodes(env))  # with the wrappers of those in the actors
        self._workers: list[Worker] = []
        with ExitStack() as stack:
            ray = stack.enter_context(connected(address, n_envs=n_envs))
            shared = ray.put(packed)
            actor_class = ray.remote(EnvironmentActor).options(**_resources(ray, n_envs))

            def start_actor(known: Sequence[Result]) -> Any:
                return actor_class.remote(sys.path, shared, known)

            for index in range(n_envs):
                worker = Worker(index, start_actor)
                stack.callback(worker.kill)  # ends whichever process it has then
                self._workers.append(worker)
            super().__init__(n_envs, env.observation_space, env.action_space)
            self._open = stack.pop_all()

    def reset(self) -> VecEnvObs:
        """Begin all episodes."""
        for worker, seed, options in zip(self._workers, self._seeds, self._options, strict=True):
            worker.send("reset", seed, options)
        observations, self.reset_infos = zip(*_replies(self._workers), strict=True)  # type: ignore[assignment]
        self._reset_seeds()
        self._reset_options()
        return np.stack(observations)

    def step_async(self, actions: NDArray[np.float32]) -> None:
        """Begin a step in all environments."""
        for worker, action in zip(self._workers, actions, strict=True):
            worker.send("step", action)

    def step_wait(self) -> VecEnvStepReturn:
        """Wait for the step in all environments, and return its results."""
        steps: list[Step] = _replies(self._workers)
        for worker, step in zip(self._workers, steps, strict=True):
            if step.start is not None:
                worker.begin_episode(step.start, step.info["episode_result"])
        observations, rewards, dones, infos, self.reset_infos, _ = zip(*steps, strict=True)
        return np.stack(observations), np.stack(rewards), np.stack(dones), list(infos)

    def close(self) -> None:
        """End the processes at once, and the cluster too if it was started for them."""
        self._open.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of each selected environment."""
        return self._call(indices, "get_attr", attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of each selected environment."""
        self._call(indices, "set_attr", attr_name, value)

    def env_method(
        self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """Call a method of each selected environment."""
        return self._call(indices, "env_method", method_name, *args, **kwargs)

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """Return for each selected environment whether it has a wrapper of this class."""
        return [is_wrapped(self._local_env, wrapper_class) for _ in self._get_indices(indices)]

    def _call(self, indices: VecEnvIndices, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        selected = [self._workers[index] for index in self._get_indices(indices)]
        for worker in selected:
            worker.send(method, *args, **kwargs)
        return _replies(selected)


def _resources(ray: ModuleType, n_envs: int) -> dict[str, Any]:
    """Return the resources of each process: a CPU and, if CUDA is in use, a GPU or a share of one."""
    available = ray.cluster_resources()
    if available.get("CPU", 0) < n_envs:
        logger.warning(
            "the cluster has %d CPUs for %d environments; some wait until more join, or lower --n-envs",
            available.get("CPU", 0),
            n_envs,
        )
    gpu_share = 0.0
    if torch.cuda.is_initialized():
        if not available.get("GPU"):
            raise AgentError("the network is on a GPU, and the cluster has none; use --device cpu")
        gpu_share = 1 / math.ceil(n_envs / available["GPU"])
    # spread over machines, as processes on one machine compete for its memory and caches
    return {"num_cpus": 1, "num_gpus": gpu_share, "scheduling_strategy": "SPREAD"}


def _replies(workers: Sequence[Worker]) -> list[Any]:
    """Return the replies of all workers; those that die meanwhile are replaced at once."""
    waiting = list(workers)
    while waiting:
        wait([worker.reply for worker in waiting], return_when=FIRST_COMPLETED)
        waiting = [worker for worker in waiting if not worker.has_replied()]
    return [worker.reply.result() for worker in workers]
