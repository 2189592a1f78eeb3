"""What this package knows of an environment: its interface, and plans as plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, TypeAlias, cast

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from torch import nn

Observation: TypeAlias = NDArray[np.float32]  # [F], each feature in [-1, 1]
Action: TypeAlias = NDArray[np.float32]  # [2], runtime and static, each in [-1, 1]; zero is the uniform plan
ActionMode: TypeAlias = Literal["centred", "raw"]  # what its static entry is taken for, see `Algorithm`
ActionRule: TypeAlias = Callable[[Observation], Action]
GymEnv: TypeAlias = gym.Env[Observation, Action]
RUNTIME, STATIC = 0, 1  # places in an action
Plan: TypeAlias = Mapping[str, Mapping[str, float]]  # group -> {"static_ratio", "runtime_ratio"}


class EpisodicEnvironment(Protocol):
    """What an environment to learn in offers beneath its wrappers, beside Gymnasium's own methods.

    One episode takes one step per channel group of one network. The last step terminates it, and its info
    holds, under "episode_result", the plan, the reward's parts, and what the plan costs and scores. Among the
    parts are "loss", "reference", "expected", the share of the reference that was expected to be lost before
    the plan was carried out, and "total". With several networks the episodes take turns.
    """

    group_names: tuple[str, ...]  # of all networks, in the order of the steps
    networks: int  # whose episodes take turns
    observation_names: tuple[str, ...]  # one per feature
    observation_version: int
    observation_normaliser: str  # what was done to the features
    action_mode: ActionMode

    @property
    def gated(self) -> tuple[bool, ...]:
        """Whether a runtime action has any effect, for each group."""

    def surrogate_env(self, predict: Callable[[Plan, float], float]) -> GymEnv:
        """Return a twin whose episodes end with what is predicted for a plan, at no evaluation.

        Foreseen is the loss as a share of the reference, from the plan and the share expected of it.
        """

    def episode_state(self) -> dict[str, Any]:
        """Return, as plain data, what the next episode depends on beside its actions."""

    def restore_episode_state(self, state: Mapping[str, Any]) -> None:
        """Have the next episode start from such a state."""

    def remember(self, result: Mapping[str, Any]) -> None:
        """Take an episode's result as known; an equal plan will not be evaluated again."""


class PruningEnvironment(EpisodicEnvironment, Protocol):
    """What an environment of one network offers besides."""

    def evaluate(self, plan: Plan) -> dict[str, Any]:
        """Return a plan's "episode_result"; it costs one evaluation."""

    def validate(self, plan: Plan) -> float:
        """Return the plan's score on the validation split; higher is better."""

    def apply(self, plan: Plan) -> nn.Module:
        """Return a copy of the network, compressed as the plan says."""


def episodic_environment(env: GymEnv) -> EpisodicEnvironment:
    """Return the environment beneath the wrappers of `env`, typed by what learning asks of it."""
    return cast(EpisodicEnvironment, env.unwrapped)


def pruning_environment(env: GymEnv) -> PruningEnvironment:
    """Return the environment beneath the wrappers of `env`, which is of one network."""
    return cast(PruningEnvironment, env.unwrapped)


def observation_schema(env: GymEnv) -> dict[str, object]:
    """Return the version, the feature names and the normaliser of the observations, as plain data."""
    pruning = episodic_environment(env)
    return {
        "version": pruning.observation_version,
        "names": list(pruning.observation_names),
        "normaliser": pruning.observation_normaliser,
    }


def action_schema(env: GymEnv) -> dict[str, object]:
    """Return names and range of an action's entries, and what they are taken for, as plain data."""
    mode = episodic_environment(env).action_mode
    return {"names": ["runtime", "static"], "low": -1.0, "high": 1.0, "mode": mode}
