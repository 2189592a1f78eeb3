"""Gymnasium wrappers for environments in processes of their own."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from prunegym.agents.errors import AgentError, CheckpointError
from prunegym.agents.interface import GymEnv, episodic_environment
from prunegym.envs.layer_pruning import Action, Observation
from prunegym.pruning.errors import PruningError, one_line
from prunegym.pruning.user_functions import as_user_error

FAILURE = "failure"  # key in an info: (the exception that the environment raised, its stack trace as text)


def named(error: BaseException) -> BaseException:
    """Return an error fit for another process: one of a user's code by name, as it might not be picklable."""
    return error if isinstance(error, (PruningError, AgentError)) else as_user_error(error) or error


class RestartableEpisodes(gym.Wrapper[Observation, Action, Observation, Action]):
    """Keeps the state from which the current episode started, so that a resumed run can start it again."""

    def __init__(self, env: GymEnv) -> None:
        super().__init__(env)
        self.start_state: Mapping[str, Any] = {}
        self._restart_from: Mapping[str, Any] | None = None

    def episode_start(self) -> Mapping[str, Any]:
        """Return the state from which the current episode started, as plain data."""
        return self.start_state

    def restart_from(self, state: Mapping[str, Any]) -> None:
        """Start the next episode from this state, whatever seed it is given."""
        self._restart_from = state

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; see the class."""
        environment = episodic_environment(self.env)
        if self._restart_from is not None:
            try:
                environment.restore_episode_state(self._restart_from)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise CheckpointError(
                    f"the checkpoint holds no state of an environment ({type(error).__name__}: "
                    f"{one_line(error)}); remove the folder checkpoint and resume: it learns anew, plans on "
                    "file are not evaluated again"
                ) from error
            seed = self._restart_from = None
        self.start_state = environment.episode_state()
        return self.env.reset(seed=seed, options=options)


class ReportedFailures(gym.Wrapper[Observation, Action, Observation, Action]):
    """Reports what the environment raises in the info, so that its process does not end in a traceback."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; see the class."""
        try:
            return self.env.reset(seed=seed, options=options)
        except BaseException as error:
            return self._nothing(), {FAILURE: (named(error), traceback.format_exc())}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take a step; see the class."""
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
        except BaseException as error:
            return self._nothing(), 0.0, False, False, {FAILURE: (named(error), traceback.format_exc())}
        return observation, float(reward), terminated, truncated, info

    def _nothing(self) -> Observation:
        assert self.observation_space.shape is not None
        return np.zeros(self.observation_space.shape, dtype=np.float32)
