"""The interface of the environments that agents learn in, beneath any Gymnasium wrappers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, cast

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from prunegym.envs.action import ActionMode
from prunegym.envs.layer_pruning import Action, Observation
from prunegym.envs.problem import PruningProblem
from prunegym.envs.results import LossPredictor

ActionRule: TypeAlias = Callable[[Observation], Action]
GymEnv: TypeAlias = gym.Env[Observation, Action]


class EpisodicEnvironment(Protocol):
    """An environment for learning: what it must offer in addition to Gymnasium's own methods.

    One episode takes one step for each site of one network. The last step terminates it, and its
    info holds "episode_result" as plain data: the plan, the terms of the reward, and the cost and the scores
    of the plan. Among the terms are "loss", "reference" (the loss of uniform pruning), "expected" (the loss
    expected before the plan was applied, divided by the reference) and "total". Several networks take turns,
    one episode each.
    """

    site_names: tuple[str, ...]  # of all networks, in the order of the steps
    techniques: tuple[str, ...]  # that are on, one for each entry of an action
    action_names: tuple[str, ...]  # the keys of their amounts in plans
    networks: int  # number of networks that take turns
    observation_names: tuple[str, ...]  # one per feature
    observation_version: int
    observation_normaliser: str  # name of the normalisation of the features
    action_mode: ActionMode

    @property
    def admitted(self) -> NDArray[np.bool_]:
        """Whether an entry of an action has an effect: [sites, techniques]."""

    def surrogate_env(self, predict: LossPredictor) -> GymEnv:
        """Return an environment of the same problem whose episodes end with predicted losses.

        It evaluates nothing. Predicted losses are relative to the reference.
        """

    def episode_state(self) -> dict[str, Any]:
        """Return the state, as plain data, that together with the actions determines the next episode."""

    def restore_episode_state(self, state: Mapping[str, Any]) -> None:
        """Set the state from which the next episode starts."""

    def remember(self, result: Mapping[str, Any]) -> None:
        """Store the result of an episode, so that an equal plan is not evaluated again."""


def episodic_environment(env: GymEnv) -> EpisodicEnvironment:
    """Return the environment beneath the wrappers of `env`, typed as an environment for learning."""
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
    """Return the names, the range and the decoding mode of an action's entries, as plain data."""
    pruning = episodic_environment(env)
    names, mode = list(pruning.action_names), pruning.action_mode
    return {"techniques": list(pruning.techniques), "names": names, "low": -1.0, "high": 1.0, "mode": mode}
