"""What this package knows of an environment: its interface, and plans as plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias, cast

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from torch import nn

Observation: TypeAlias = NDArray[np.float32]  # [F], each feature in [0, 1]
Action: TypeAlias = NDArray[np.float32]  # [2], runtime and static, each in [-1, 1]; zero is the uniform plan
ActionRule: TypeAlias = Callable[[Observation], Action]
GymEnv: TypeAlias = gym.Env[Observation, Action]
Plan: TypeAlias = Mapping[str, Mapping[str, float]]  # group -> {"static_ratio", "runtime_ratio"}


class PruningEnvironment(Protocol):
    """What an environment offers beneath its wrappers, beside Gymnasium's own methods.

    One episode takes one step per channel group. The last step terminates it, and its info holds, under
    "episode_result", the plan, the reward's parts with their "total", and what the plan costs and scores.
    """

    group_names: tuple[str, ...]  # in the order of the steps
    observation_names: tuple[str, ...]  # one per feature
    observation_version: int

    def validate(self, plan: Plan) -> float:
        """Return the plan's score on the validation split; higher is better."""

    def carry_out(self, plan: Plan) -> nn.Module:
        """Return a copy of the network, compressed as the plan says."""


def pruning_environment(env: GymEnv) -> PruningEnvironment:
    """Return the environment beneath the wrappers of `env`, typed by what is asked of it."""
    return cast(PruningEnvironment, env.unwrapped)


def observation_schema(env: GymEnv) -> dict[str, object]:
    """Return the version and the feature names of the observations, as plain data."""
    pruning = pruning_environment(env)
    return {"version": pruning.observation_version, "names": list(pruning.observation_names)}
