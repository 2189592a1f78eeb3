"""The learning algorithms; every number that tunes them lies as data in `hyperparameters/NAME.yaml`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import yaml
from stable_baselines3 import DDPG, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from prunegym.agents.dyna_ppo.algorithm import N_SURROGATE_ENVS, DynaPPO
from prunegym.agents.errors import HyperparameterError
from prunegym.agents.learning.amc import AMC
from prunegym.envs.action import ActionMode
from prunegym.pruning.registry import Registry, nearest_hint

Settings: TypeAlias = dict[str, Any]  # arguments of a Stable-Baselines3 algorithm


@dataclass(frozen=True)
class RolloutSchedule:
    """How episodes come: each environment plays one of every network in turn, all of them in lockstep."""

    steps: int  # of one environment in one round: a step for each group of each network
    networks: int
    n_envs: int

    @property
    def episodes(self) -> int:
        """Episodes that end in one round."""
        return self.networks * self.n_envs

    def for_episodes(self, episodes: int) -> int:
        """Return the fewest rounds that hold so many episodes."""
        return math.ceil(episodes / self.episodes)


@dataclass(frozen=True)
class Algorithm:
    """A Stable-Baselines3 algorithm, tuned for short episodes and few evaluations."""

    name: str
    model_class: type[BaseAlgorithm]
    settings: Callable[[Settings, RolloutSchedule], Settings]  # from hyperparameters, counted in episodes
    actions: ActionMode = "centred"  # on uniform pruning; or "raw": the ratio itself
    policies: str = ""  # the algorithm whose policies it has, unless its own

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The defaults, plain data."""
        return yaml.safe_load((FOLDER / f"{self.name}.yaml").read_text(encoding="utf-8"))

    def make(
        self,
        env: VecEnv,
        rounds: RolloutSchedule,
        *,
        hyperparameters: Mapping[str, Any],
        seed: int,
        device: str,
        tensorboard_log: Path | None,
    ) -> BaseAlgorithm:
        """Return an untrained model whose updates come after whole rounds."""
        settings = self.settings(copy.deepcopy(dict(hyperparameters)), rounds)
        final = settings.pop("final_learning_rate", None)
        if final is not None:
            settings["learning_rate"] = LinearSchedule(settings["learning_rate"], final, 1.0)
        log = str(tensorboard_log) if tensorboard_log else None
        return self.model_class("MlpPolicy", env, seed=seed, device=device, tensorboard_log=log, **settings)


def on_policy(hyperparameters: Settings, rounds: RolloutSchedule) -> Settings:
    """Return the settings of an algorithm that learns from whole rounds and forgets them."""
    settings = dict(hyperparameters)
    settings["policy_kwargs"] |= {
        "optimizer_class": torch.optim.AdamW,  # which is Adam where nothing decays
        "optimizer_kwargs": {"weight_decay": settings.pop("weight_decay", 0.0), "eps": 1e-5},
    }
    n_steps = rounds.for_episodes(settings.pop("episodes_per_update")) * rounds.steps
    minibatches = math.gcd(settings.pop("minibatches"), n_steps * rounds.n_envs)  # none is cut short
    batch_size = n_steps * rounds.n_envs // minibatches
    _require_some(batch_size, "minibatches of a step teach nothing; fewer, or more episodes_per_update, do")
    return {**settings, "n_steps": n_steps, "batch_size": batch_size}


def _require_some(steps: int, otherwise: str) -> None:
    """Refuse to learn from a single step, whose advantage PPO compares with none."""
    if steps < 2:
        raise HyperparameterError(otherwise)


def off_policy(hyperparameters: Settings, rounds: RolloutSchedule) -> Settings:
    """Return the settings of an algorithm that learns from all it has seen, after every round."""
    settings = dict(hyperparameters)
    steps_per_episode = rounds.steps / rounds.networks
    settings["learning_starts"] = round(settings.pop("warmup_episodes") * steps_per_episode)
    settings["gradient_steps"] = settings.pop("updates_per_step") * rounds.steps * rounds.n_envs
    if "exploration_noise" in settings:
        deviation = np.full(2, settings.pop("exploration_noise"))
        settings["action_noise"] = NormalActionNoise(np.zeros(2), deviation)
    # not the algorithm's own n_steps, of which Stable-Baselines3 warns whenever it loads the model
    returns = {"n_steps": settings.pop("n_steps"), "gamma": settings["gamma"]}
    replay = {"replay_buffer_class": NStepReplayBuffer, "replay_buffer_kwargs": returns}
    return {**settings, **replay, "train_freq": (rounds.steps, "step")}


def amc(hyperparameters: Settings, rounds: RolloutSchedule) -> Settings:
    """Return the settings of AMC, which explores and warms up in its own way."""
    settings = dict(hyperparameters)
    settings["gradient_steps"] = settings.pop("updates_per_step") * rounds.steps * rounds.n_envs
    return {**settings, "train_freq": (rounds.steps, "step")}


def dyna(hyperparameters: Settings, rounds: RolloutSchedule) -> Settings:
    """Return the settings of an algorithm that learns from surrogate_schedule episodes after whole rounds."""
    surrogate_schedule = replace(rounds, n_envs=N_SURROGATE_ENVS)
    settings = on_policy(hyperparameters, surrogate_schedule)
    per_update = settings["n_steps"] // surrogate_schedule.steps * surrogate_schedule.episodes
    evaluated = rounds.for_episodes(settings.pop("evaluated_episodes"))
    _require_some(rounds.n_envs * evaluated * rounds.steps, "a step is no rollout; raise evaluated_episodes")
    imagined_episodes, warmup = settings.pop("imagined_episodes"), settings.pop("warmup_episodes")
    exploration = settings.pop("exploration"), settings.pop("final_exploration")
    return {
        **settings,
        "imagined_steps": settings["n_steps"],
        "imagined_batch": settings["batch_size"],
        "n_steps": evaluated * rounds.steps,
        "batch_size": evaluated * rounds.steps * rounds.n_envs,  # which nothing is learned from
        "updates": math.ceil(imagined_episodes / per_update),
        "warmup": warmup,
        "exploration": exploration,
    }


DEFAULT_ALGORITHM = "dyna-ppo"
FOLDER = Path(__file__).parents[1] / "hyperparameters"
ALGORITHMS: Registry[Algorithm] = Registry("algorithm")
for entry in (
    Algorithm("dyna-ppo", DynaPPO, dyna, policies="ppo"),
    Algorithm("ppo", PPO, on_policy),
    Algorithm("sac", SAC, off_policy),
    Algorithm("td3", TD3, off_policy),
    Algorithm("ddpg", DDPG, off_policy),
    Algorithm("amc", AMC, amc, actions="raw"),
):
    ALGORITHMS.register(entry.name)(entry)


def read_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """Read hyper-parameters such as "learning_rate=1e-3" or "policy_kwargs.net_arch=[32, 32]", as YAML.

    Raises:
        HyperparameterError: a text is not KEY=VALUE, or its value is not plain YAML.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        try:
            if not equals:
                raise ValueError
            found[key] = _number(yaml.safe_load(value))
        except (yaml.YAMLError, ValueError, RecursionError):
            raise HyperparameterError(
                f"expected a hyper-parameter such as learning_rate=0.001, got {text!r}"
            ) from None
    return found


def with_overrides(spec: Algorithm, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return an algorithm's hyper-parameters, with some replaced.

    Args:
        spec: the algorithm.
        overrides: new values by key; `policy_kwargs.net_arch` is net_arch within policy_kwargs.

    Raises:
        HyperparameterError: the algorithm has no such hyper-parameter, or it is of another kind.
    """
    merged = spec.hyperparameters
    for key, value in overrides.items():
        *path, last = key.split(".")
        place: Any = merged
        for part in path:
            place = place.get(part) if isinstance(place, dict) else None
        if not isinstance(place, dict) or isinstance(place.get(last, {}), dict):
            known = list(_keys(spec.hyperparameters))
            hint = nearest_hint(key, known)
            raise HyperparameterError(
                f"{spec.name} has no hyper-parameter {key!r}.{hint} Known: {', '.join(known)}"
            )
        kind, fits = _kind(place[last])
        if not fits(value):
            raise HyperparameterError(
                f"{spec.name}: {key} must be {kind}, such as its default {place[last]!r}, got {value!r}"
            )
        place[last] = value
    return merged


def _keys(data: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _kind(default: Any) -> tuple[str, Callable[[Any], bool]]:
    """Return what can take a default's place, in words and as a test."""
    if isinstance(default, list):  # of the sizes of layers
        return (
            "a list of whole numbers of 1 or more",
            lambda value: isinstance(value, list) and all(_is_size(one) for one in value),
        )
    if isinstance(default, int):
        return "a whole number of 1 or more", _is_size
    if default < 0:  # of a logarithm
        return "a number", _is_number
    return "a number of 0 or more", lambda value: _is_number(value) and value >= 0


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0  # True is an int too


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _number(value: Any) -> Any:
    """Return 1e-3 as the number it is meant to be; YAML 1.1 reads it as text for want of a point."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
