"""The environments of a cluster behind one interface; where a process dies, another repeats its episode."""

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

MAX_DEATHS_PER_CALL = 3  # at the same call, until the call is held to be the cause
Call: TypeAlias = tuple[str, tuple[Any, ...], Mapping[str, Any]]  # of a method of EnvironmentActor


class Worker:
    """A process of the cluster or, after its death, another that has caught up with it.

    Args:
        number: of its environment, for messages.
        begin: starts a process that knows the results of some episodes, and returns Ray's handle of it.
    """

    reply: Future[Any]  # to the last call

    def __init__(self, number: int, begin: Callable[[Sequence[Result]], Any]) -> None:
        self._number = number
        self._begin = begin
        self._results: list[Result] = []  # of the episodes it has played
        self._calls: list[Call] = []  # that led from the start of the episode to where it stands
        self._deaths = 0  # since it last replied
        self._process = begin(())

    def send(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Call a method of the EnvironmentActor."""
        self._calls.append((method, args, kwargs))
        self._pass_on(self._calls[-1])

    def has_replied(self) -> bool:
        """Return whether it has; if it died instead, another begins to catch up.

        Raises:
            AgentError: it has died MAX_DEATHS_PER_CALL times at this call.
            Exception: what the environment raised.
        """
        if not self.reply.done():
            return False
        error = self.reply.exception()
        if isinstance(error, imported_ray().exceptions.RayTaskError):
            raise error.cause from error  # with its own message, not the story of where it came from
        if error is not None:
            self._replace(error)
            return False
        self._deaths = 0
        return True

    def begin_episode(self, start: Mapping[str, Any], after: Result) -> None:
        """Let a successor begin at this episode's start, and know the result of the one before."""
        self._results.append(after)
        lasting = [call for call in self._calls if call[0] == "set_attr"]
        self._calls = [*lasting, ("env_method", ("restart_from", start), {}), ("reset", (None, {}), {})]

    def kill(self) -> None:
        """End the process at once, whatever it is doing."""
        imported_ray().kill(self._process)

    def _pass_on(self, call: Call) -> None:
        method, args, kwargs = call
        # a future, as `ray.get` makes a plain KeyboardInterrupt of whatever a signal's handler raises
        self.reply = getattr(self._process, method).remote(*args, **kwargs).future()

    def _replace(self, error: BaseException) -> None:
        self._deaths += 1
        cause = textwrap.shorten(str(error).strip().rpartition("\n")[2], 200)
        if self._deaths == MAX_DEATHS_PER_CALL:
            raise AgentError(
                f"the process of environment {self._number} died {MAX_DEATHS_PER_CALL} times "
                f"at the same step ({cause}); see to the cause, perhaps to memory, and go on with --resume"
            ) from error
        logger.warning("the process of environment %d died (%s); it is replaced", self._number, cause)
        self.kill()  # it may only be out of reach
        self._process = self._begin(self._results)
        for call in self._calls:
            self._pass_on(call)


class RayVecEnv(VecEnv):
    """Environments that step in lockstep, each in a process of a Ray cluster with one thread.

    Args:
        env: all are like it; it is sent once to each machine.
        n_envs: how many.
        address: of the cluster, see `connected`.

    Raises:
        AgentError: see `connected` and `pack`; or CUDA is in use here and the cluster has no GPU.
    """

    def __init__(self, env: GymEnv, *, n_envs: int, address: str) -> None:
        packed = pack(env)
        self._twin = Monitor(RestartableEpisodes(env))  # wrapped as they are
        self._workers: list[Worker] = []
        with ExitStack() as stack:
            ray = stack.enter_context(connected(address, n_envs=n_envs))
            stack.callback(self._kill)
            shared = ray.put(packed)
            actor = ray.remote(EnvironmentActor).options(**_resources(ray, n_envs))

            def begin(known: Sequence[Result]) -> Any:
                return actor.remote(sys.path, shared, known)

            for number in range(n_envs):
                self._workers.append(Worker(number, begin))
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
        """Return what came of the step, however long it takes and however often it must be begun again."""
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
        """Return an attribute of each environment asked for."""
        return self._ask(indices, "get_attr", attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of each environment asked for."""
        self._ask(indices, "set_attr", attr_name, value)

    def env_method(
        self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """Call a method of each environment asked for."""
        return self._ask(indices, "env_method", method_name, *args, **kwargs)

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """Return whether each environment asked for has such a wrapper."""
        return [is_wrapped(self._twin, wrapper_class) for _ in self._get_indices(indices)]

    def _ask(self, indices: VecEnvIndices, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        asked = [self._workers[index] for index in self._get_indices(indices)]
        for worker in asked:
            worker.send(method, *args, **kwargs)
        return _replies(asked)

    def _kill(self) -> None:
        for worker in self._workers:
            worker.kill()


def _resources(ray: ModuleType, n_envs: int) -> dict[str, Any]:
    """Return what each process needs: a CPU and, where CUDA is in use, a GPU or its share of one."""
    there = ray.cluster_resources()
    if there.get("CPU", 0) < n_envs:
        logger.warning(
            "the cluster has %d CPUs for %d environments; some wait until more join, or lower --n-envs",
            there.get("CPU", 0),
            n_envs,
        )
    share = 0.0
    if torch.cuda.is_initialized():
        if not there.get("GPU"):
            raise AgentError("the network is on a GPU, and the cluster has none; use --device cpu")
        share = 1 / math.ceil(n_envs / there["GPU"])
    # spread: machines have memory and caches of their own, so neighbours would slow each other down
    return {"num_cpus": 1, "num_gpus": share, "scheduling_strategy": "SPREAD"}


def _replies(workers: Sequence[Worker]) -> list[Any]:
    """Return the reply of each; one that dies is replaced at once, while the others are at work."""
    waiting = list(workers)
    while waiting:
        wait([worker.reply for worker in waiting], return_when=FIRST_COMPLETED)
        waiting = [worker for worker in waiting if not worker.has_replied()]
    return [worker.reply.result() for worker in workers]
