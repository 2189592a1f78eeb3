"""The actor that runs an environment in a process of a Ray cluster, and the packing of environments."""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import cloudpickle
import torch
from stable_baselines3.common.monitor import Monitor

from prunegym.agents.errors import AgentError
from prunegym.agents.interface import GymEnv, episodic_environment
from prunegym.agents.vector.wrappers import RestartableEpisodes, named
from prunegym.envs.layer_pruning import Action, Observation
from prunegym.pruning.errors import one_line
from prunegym.pruning.machine_failures import raise_machine_failure

Result: TypeAlias = Mapping[str, Any]  # an "episode_result"


class Step(NamedTuple):
    """The result of a step; after the last step of an episode, `observation` is the next episode's first."""

    observation: Observation
    reward: float
    done: bool
    info: dict[str, Any]
    reset_info: dict[str, Any]
    start: Mapping[str, Any] | None  # the state that the next episode starts from, if it has begun


@contextmanager
def _naming_errors() -> Iterator[None]:
    """Raise errors of a user's code by name; where Ray itself ends the process, let it."""
    try:
        yield
    except BaseException as error:
        *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
        if isinstance(error, SystemExit) and innermost.f_globals.get("__name__", "").startswith("ray."):
            raise
        raise named(error) from None


class EnvironmentActor:
    """An environment in a process of the cluster, on one thread.

    Args:
        paths: the sender's import paths.
        packed: the environment, as returned by `pack`.
        known: results of episodes, which are not evaluated again.
    """

    @_naming_errors()
    def __init__(self, paths: Iterable[str], packed: bytes, known: Iterable[Result]) -> None:
        torch.set_num_threads(1)
        sys.path.extend(path for path in paths if path not in sys.path)
        # not untrusted: this run packed it
        env: GymEnv = torch.load(io.BytesIO(packed), weights_only=False)
        for result in known:
            episodic_environment(env).remember(result)
        self._env = Monitor(RestartableEpisodes(env))

    @_naming_errors()
    def reset(self, seed: int | None, options: dict[str, Any]) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode."""
        return self._env.reset(seed=seed, **({"options": options} if options else {}))

    @_naming_errors()
    def step(self, action: Action) -> Step:
        """Take a step; after the last step of an episode, begin the next one."""
        observation, reward, terminated, truncated, info = self._env.step(action)
        info["TimeLimit.truncated"] = truncated and not terminated
        if not (terminated or truncated):
            return Step(observation, float(reward), False, info, {}, None)
        info["terminal_observation"] = observation
        observation, reset_info = self._env.reset()
        return Step(observation, float(reward), True, info, reset_info, self.env_method("episode_start"))

    def env_method(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the environment or of a wrapper."""
        return self._env.get_wrapper_attr(name)(*args, **kwargs)

    def get_attr(self, name: str) -> Any:
        """Return an attribute of the environment or of a wrapper."""
        return self._env.get_wrapper_attr(name)

    def set_attr(self, name: str, value: Any) -> None:
        """Set an attribute of the outermost wrapper."""
        setattr(self._env, name, value)


def pack(env: GymEnv) -> bytes:
    """Pickle an environment, with the code that another process could not import.

    Raises:
        AgentError: a part of it cannot be pickled.
    """
    buffer = io.BytesIO()
    by_value = [module for name, module in sys.modules.copy().items() if not _importable(name)]
    for module in by_value:
        cloudpickle.register_pickle_by_value(module)
    try:
        # plain pickle would copy the whole tensor for each view of it
        torch.save(env, buffer, pickle_module=cloudpickle)
    except Exception as error:  # parts of a user's network may raise anything
        raise_machine_failure(error)
        raise AgentError(
            f"the environment cannot be sent to a cluster ({one_line(error)}); leave out --cluster"
        ) from error
    finally:
        for module in by_value:
            cloudpickle.unregister_pickle_by_value(module)
    return buffer.getvalue()


def _importable(name: str) -> bool:
    """Return whether another process can import a module, unlike a network's file that was executed."""
    file = getattr(sys.modules[name], "__file__", None)
    if "." in name or name == "__main__" or not file:
        return True  # its package decides; or it is pickled by value in any case; or it is built in
    specs = [finder.find_spec(name, None) for finder in sys.meta_path]
    return any(spec and spec.origin == file for spec in specs)  # not another module of the same name
