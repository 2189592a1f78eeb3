"""The learning algorithms, and every number that tunes them, as data."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm

from agents.errors import UnknownAlgorithmError
from agents.interface import GymEnv, pruning_environment

Make: TypeAlias = Callable[[GymEnv, int, str, Path | None, Mapping[str, Any]], BaseAlgorithm]


@dataclass(frozen=True)
class Algorithm:
    """A Stable-Baselines3 algorithm, tuned for short episodes and few evaluations."""

    name: str
    model_class: type[BaseAlgorithm]
    make: Make  # (env, seed, device, tensorboard_log, hyperparameters) -> model
    hyperparameters: Mapping[str, Any]  # plain data


class Algorithms(dict[str, Algorithm]):
    """Algorithms by name; asking for another names the nearest and lists the rest."""

    def __missing__(self, name: str) -> Algorithm:
        near = difflib.get_close_matches(name, self, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnknownAlgorithmError(f"no algorithm named {name!r}.{hint} Known: {', '.join(sorted(self))}")


def make_ppo(
    env: GymEnv, seed: int, device: str, tensorboard_log: Path | None, hyperparameters: Mapping[str, Any]
) -> BaseAlgorithm:
    """Return a PPO model whose every update sees a fixed number of whole episodes."""
    settings = dict(hyperparameters)
    n_steps = settings.pop("episodes_per_update") * len(pruning_environment(env).group_names)
    return PPO(
        "MlpPolicy",
        env,
        n_steps=n_steps,
        batch_size=n_steps // settings.pop("minibatches"),
        seed=seed,
        device=device,
        tensorboard_log=str(tensorboard_log) if tensorboard_log else None,
        **settings,
    )


PPO_HYPERPARAMETERS: Mapping[str, Any] = {
    "episodes_per_update": 8,
    "minibatches": 4,  # divides episodes_per_update, so none is cut short whatever the group count
    "n_epochs": 20,  # evaluations are dear and updates cheap
    "clip_range": 0.3,
    "max_grad_norm": 1.0,
    "learning_rate": 2e-3,
    "gamma": 1.0,  # the reward comes at the last step; no decision counts less for being early
    "gae_lambda": 0.95,
    "policy_kwargs": {"net_arch": [64, 64], "log_std_init": -1.0},  # starts around the uniform plan, +-0.37
}

ALGORITHMS = Algorithms(
    {entry.name: entry for entry in (Algorithm("ppo", PPO, make_ppo, PPO_HYPERPARAMETERS),)}
)
