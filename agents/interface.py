"""What learning asks of an environment, beneath whatever wraps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, cast

import gymnasium as gym

from prunegym.envs.action import ActionMode
from prunegym.envs.layer_pruning import Action, Observation
from prunegym.envs.problem import PruningProblem
from prunegym.envs.results import LossPredictor

ActionRule: TypeAlias = Callable[[Observation], Action]
GymEnv: TypeAlias = gym.Env[Observation, Action]


class EpisodicEnvironment(Protocol):
    """What an environment to learn in offers beside Gymnasium's own methods.

    One episode takes one step for each channel group of one network. The last step terminates it, and its
    info holds the plain data "episode_result": the plan, the reward's parts, and what the plan costs and
    scores. Among the parts are "loss", "reference", "expected" (the loss that was expected before the plan
    was applied, as a share of the reference) and "total". With several networks the episodes take turns.
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

    def surrogate_env(self, predict: LossPredictor) -> GymEnv:
        """Return an environment of the same problem whose episodes end with predicted losses.

        It evaluates nothing. Losses are relative to the reference.
        """

    def episode_state(self) -> dict[str, Any]:
        """Return, as plain data, what the next episode depends on beside its actions."""

    def restore_episode_state(self, state: Mapping[str, Any]) -> None:
        """Let the next episode start from such a state."""

    def remember(self, result: Mapping[str, Any]) -> None:
        """Take an episode's result as known; an equal plan will not be evaluated again."""


def episodic_environment(env: GymEnv) -> EpisodicEnvironment:
    """Return the environment beneath the wrappers of `env`, typed by what learning asks of it."""
    return cast(EpisodicEnvironment, env.unwrapped)


def problem_of(env: GymEnv) -> PruningProblem:
    """Return the problem of the environment of one network that lies beneath the wrappers of `env`."""
    return cast(Any, env.unwrapped).problem


def observation_schema(env: GymEnv) -> dict[str, object]:
    """Return the version, the feature names and the normaliser of the observations, as plain data."""
    pruning = episodic_environment(env)
    return {
        "version": pruning.observation_version,
        "names": list(pruning.observation_names),
        "normaliser": pruning.observation_normaliser,
    }


def action_schema(env: GymEnv) -> dict[str, object]:
    """Return names and range of an action's entries, and how they are decoded, as plain data."""
    mode = episodic_environment(env).action_mode
    return {"names": ["runtime", "static"], "low": -1.0, "high": 1.0, "mode": mode}
