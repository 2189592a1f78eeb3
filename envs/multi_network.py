"""Several networks in turn, so that one policy learns what holds for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from prunegym.envs.layer_pruning import Action, LayerPruningEnv, Observation
from prunegym.envs.results import LossPredictor, PlainPlan
from prunegym.pruning.errors import PlanError


class MultiNetworkEnv(gym.Env[Observation, Action]):
    """Each episode prunes the next network of a round; observations mean the same in all of them.

    Spaces, rewards and `info` are those of LayerPruningEnv, but names of sites begin with the network's:
    `cifar_resnet20/layer1.0.conv1`.

    Args:
        envs: network name -> its environment.

    Raises:
        PlanError: there is none, or other techniques are on for some than for others.
    """

    observation_version = LayerPruningEnv.observation_version
    observation_normaliser = LayerPruningEnv.observation_normaliser

    def __init__(self, envs: Mapping[str, LayerPruningEnv]) -> None:
        if not envs:
            raise PlanError("there is no network to learn on; name at least one")
        self.envs = dict(envs)
        self.networks = len(self.envs)
        first = next(iter(self.envs.values()))
        for name, env in self.envs.items():
            if env.techniques != first.techniques:
                raise PlanError(
                    f"{name} is compressed by {' '.join(env.techniques)}, another network by "
                    f"{' '.join(first.techniques)}; one policy needs the same techniques everywhere"
                )
        self.site_names = tuple(
            f"{name}/{site}" for name, env in self.envs.items() for site in env.site_names
        )
        self.admitted = np.concatenate([env.admitted for env in self.envs.values()])
        self.techniques, self.action_names = first.techniques, first.action_names
        self.observation_names = first.observation_names
        self.action_space, self.observation_space = first.action_space, first.observation_space
        self.action_mode = first.action_mode
        self._turn = -1  # index of the network whose episode it is

    @property
    def _name(self) -> str:
        return list(self.envs)[self._turn]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode of the next network; of the first one where a seed is given."""
        super().reset(seed=seed)
        self._turn = (self._turn + 1) % self.networks if seed is None else 0
        env_seed = int(self.np_random.integers(2**31))  # one state of random numbers decides all that follows
        return self.envs[self._name].reset(seed=env_seed, options=options)

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Decide the next site of the network at hand."""
        name = self._name
        observation, reward, terminated, truncated, info = self.envs[name].step(action)
        info["site"] = f"{name}/{info['site']}"
        if "episode_result" in info:
            result = info["episode_result"]
            info["episode_result"] = {**result, "plan": _named(name, result["plan"])}
        return observation, reward, terminated, truncated, info

    def surrogate_env(self, predict: LossPredictor) -> MultiNetworkEnv:
        """Return an environment of the same problems whose episodes end with predicted losses."""

        def predict_for(name: str) -> LossPredictor:
            return lambda plan, expected: predict(_named(name, plan), expected)

        return MultiNetworkEnv(
            {name: env.surrogate_env(predict_for(name)) for name, env in self.envs.items()}
        )

    def episode_state(self) -> dict[str, Any]:
        """Return whose turn is over, and the state of the random numbers, as plain data."""
        return {"turn": self._turn, "random": self.np_random.bit_generator.state}

    def restore_episode_state(self, state: Mapping[str, Any]) -> None:
        """Let the next episode start from what `episode_state` returned."""
        self._turn = state["turn"]
        self.np_random.bit_generator.state = state["random"]

    def remember(self, result: Mapping[str, Any]) -> None:
        """Take an `episode_result` as known, from an earlier run of the same task."""
        # looked up: a network's own name may hold slashes
        places = {
            f"{name}/{site}": (name, site) for name, env in self.envs.items() for site in env.site_names
        }
        name, _ = places[next(iter(result["plan"]))]
        plan = {places[site][1]: decision for site, decision in result["plan"].items()}
        self.envs[name].remember({**result, "plan": plan})


def _named(network: str, plan: PlainPlan) -> PlainPlan:
    """Return a plan with the network's name before those of its sites."""
    return {f"{network}/{site}": decision for site, decision in plan.items()}
