"""An adapter from Gymnasium's vector environments to those of Stable-Baselines3."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn


class GymVectorAdapter(VecEnv):
    """A Stable-Baselines3 environment around a vector environment whose sub-environments share one state.

    Args:
        env: an environment with the autoreset mode SAME_STEP; arrays in its infos have one entry for each
            sub-environment.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
        self.env = env
        self._restarts = False
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    stateful_indices = (0,)  # sub-environments to ask for their state; all share that of the first

    def reset(self) -> VecEnvObs:
        """Begin all episodes, with the seed given to `seed` or the state given to `restart_from`, if any."""
        observations, _ = self.env.reset(seed=None if self._restarts else self._seeds[0])
        self._restarts = False
        self._reset_seeds()
        return observations

    def step_async(self, actions: NDArray[np.float32]) -> None:
        """Store the actions of the next step."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step all sub-environments with the stored actions."""
        observations, rewards, terminated, truncated, infos = self.env.step(self._actions)
        by_env: list[dict[str, Any]] = [
            {name: values[index] for name, values in infos.items()} for index in range(self.num_envs)
        ]
        return observations, rewards.astype(np.float32), terminated | truncated, by_env

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of the environment, repeated for each selected sub-environment."""
        return [getattr(self.env, attr_name)] * len(self._selected(indices))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the environment, for all sub-environments."""
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """Call a method once, and return its result, repeated for each selected sub-environment."""
        self._restarts |= method_name == "restart_from"
        return [getattr(self.env, method_name)(*args, **kwargs)] * len(self._selected(indices))

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """Return False for each selected sub-environment: none has a wrapper of its own."""
        return [False] * len(self._selected(indices))

    def _selected(self, indices: VecEnvIndices) -> Sequence[int]:
        if indices is None:
            return range(self.num_envs)
        return list(indices) if isinstance(indices, Iterable) else [indices]
