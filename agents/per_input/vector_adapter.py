"""A Gymnasium vector environment as Stable-Baselines3 takes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn


class GymVectorAdapter(VecEnv):
    """Passes on to a vector environment whose sub-environments share one step, and one state.

    Args:
        env: with the autoreset mode SAME_STEP; arrays in its infos have an entry for each sub-environment.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
        self.env = env
        self._restarts = False
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    of_their_own = (0,)  # the sub-environments with a state of their own

    def reset(self) -> VecEnvObs:
        """Begin all episodes: with the seed of `seed`, once, or where `restart_from` says."""
        observations, _ = self.env.reset(seed=None if self._restarts else self._seeds[0])
        self._restarts = False
        self._reset_seeds()
        return observations

    def step_async(self, actions: NDArray[np.float32]) -> None:
        """Take the actions of the next step."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Take the step in all sub-environments at once."""
        observations, rewards, terminated, truncated, infos = self.env.step(self._actions)
        by_env: list[dict[str, Any]] = [
            {name: values[number] for name, values in infos.items()} for number in range(self.num_envs)
        ]
        return observations, rewards.astype(np.float32), terminated | truncated, by_env

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of the environment, once for each sub-environment asked for."""
        return [getattr(self.env, attr_name)] * len(self._asked(indices))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute, which all sub-environments share."""
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """Call a method once, and return what it returns for each sub-environment asked for."""
        self._restarts |= method_name == "restart_from"
        return [getattr(self.env, method_name)(*args, **kwargs)] * len(self._asked(indices))

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """Return that no sub-environment has a wrapper of its own."""
        return [False] * len(self._asked(indices))

    def _asked(self, indices: VecEnvIndices) -> Sequence[int]:
        if indices is None:
            return range(self.num_envs)
        return list(indices) if isinstance(indices, Iterable) else [indices]
