"""The learning algorithms; their hyper-parameters are data, in `hyperparameters/NAME.yaml`."""

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
from prunegym.pruning.files.plain_data import parse_yaml, shortened
from prunegym.pruning.registry import Registry, nearest_hint

Settings: TypeAlias = dict[str, Any]  # arguments of a Stable-Baselines3 algorithm


@dataclass(frozen=True)
class RolloutSchedule:
    """The sizes of a round, in which every environment plays one episode of each network, in lockstep."""

    steps: int  # of one environment in a round: one for each site of each network
    networks: int  # number of networks that take turns
    n_envs: int

    @property
    def episodes(self) -> int:
        """Number of episodes in a round."""
        return self.networks * self.n_envs

    def for_episodes(self, episodes: int) -> int:
        """Return the smallest number of rounds with at least so many episodes."""
        return math.ceil(episodes / self.episodes)


@dataclass(frozen=True)
class Algorithm:
    """A Stable-Baselines3 algorithm, tuned for short episodes and few evaluations."""

    name: str
    model_class: type[BaseAlgorithm]
    settings: Callable[[Settings, RolloutSchedule], Settings]  # from hyper-parameters counted in episodes
    actions: ActionMode = "centred"  # on uniform pruning; or "raw": the action is the ratio itself
    policies: str = ""  # name of the algorithm whose policies it learns; by default its own

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Default hyper-parameters, as plain data."""
        return yaml.safe_load((FOLDER / f"{self.name}.yaml").read_text(encoding="utf-8"))

    def make(
        self,
        env: VecEnv,
        schedule: RolloutSchedule,
        *,
        hyperparameters: Mapping[str, Any],
        seed: int,
        device: str,
        tensorboard_log: Path | None,
    ) -> BaseAlgorithm:
        """Return an untrained model that updates after whole rounds."""
        settings = self.settings(copy.deepcopy(dict(hyperparameters)), schedule)
        final_rate = settings.pop("final_learning_rate", None)
        if final_rate is not None:
            settings["learning_rate"] = LinearSchedule(settings["learning_rate"], final_rate, 1.0)
        log = str(tensorboard_log) if tensorboard_log else None
        return self.model_class("MlpPolicy", env, seed=seed, device=device, tensorboard_log=log, **settings)


def on_policy(hyperparameters: Settings, schedule: RolloutSchedule) -> Settings:
    """Return the settings of an on-policy algorithm, which updates on whole rounds.

    Raises:
        HyperparameterError: minibatches would be of single steps, whose advantages PPO cannot normalise.
    """
    settings = dict(hyperparameters)
    settings["policy_kwargs"] |= {
        "optimizer_class": torch.optim.AdamW,  # equals Adam without weight decay
        "optimizer_kwargs": {"weight_decay": settings.pop("weight_decay", 0.0), "eps": 1e-5},
    }
    n_steps = schedule.for_episodes(settings.pop("episodes_per_update")) * schedule.steps
    # of equal size, so a divisor of the number of steps
    minibatches = math.gcd(settings.pop("minibatches"), n_steps * schedule.n_envs)
    batch_size = n_steps * schedule.n_envs // minibatches
    if batch_size < 2:
        raise HyperparameterError(
            "minibatches of a step teach nothing; fewer, or more episodes_per_update, do"
        )
    return {**settings, "n_steps": n_steps, "batch_size": batch_size}


def off_policy(hyperparameters: Settings, schedule: RolloutSchedule) -> Settings:
    """Return the settings of an off-policy algorithm, which updates on its replay buffer after each round."""
    settings = dict(hyperparameters)
    steps_per_episode = schedule.steps / schedule.networks
    settings["learning_starts"] = round(settings.pop("warmup_episodes") * steps_per_episode)
    settings["gradient_steps"] = settings.pop("updates_per_step") * schedule.steps * schedule.n_envs
    if "exploration_noise" in settings:
        noise_std = np.full(2, settings.pop("exploration_noise"))
        settings["action_noise"] = NormalActionNoise(np.zeros(2), noise_std)
    # not the algorithm's own n_steps, for which Stable-Baselines3 warns whenever it loads the model
    returns = {"n_steps": settings.pop("n_steps"), "gamma": settings["gamma"]}
    replay = {"replay_buffer_class": NStepReplayBuffer, "replay_buffer_kwargs": returns}
    return {**settings, **replay, "train_freq": (schedule.steps, "step")}


def amc(hyperparameters: Settings, schedule: RolloutSchedule) -> Settings:
    """Return the settings of AMC, which has its own exploration and warm-up."""
    settings = dict(hyperparameters)
    settings["gradient_steps"] = settings.pop("updates_per_step") * schedule.steps * schedule.n_envs
    return {**settings, "train_freq": (schedule.steps, "step")}


def dyna(hyperparameters: Settings, schedule: RolloutSchedule) -> Settings:
    """Return the settings of DynaPPO, which learns in surrogate environments after whole rounds.

    Raises:
        HyperparameterError: see `on_policy`; or a rollout would be a single step.
    """
    surrogate_schedule = replace(schedule, n_envs=N_SURROGATE_ENVS)
    settings = on_policy(hyperparameters, surrogate_schedule)
    episodes_per_update = settings["n_steps"] // surrogate_schedule.steps * surrogate_schedule.episodes
    rounds = schedule.for_episodes(settings.pop("evaluated_episodes"))
    if schedule.n_envs * rounds * schedule.steps < 2:
        raise HyperparameterError("a step is no rollout; raise evaluated_episodes")
    imagined_episodes, warmup = settings.pop("imagined_episodes"), settings.pop("warmup_episodes")
    exploration = settings.pop("exploration"), settings.pop("final_exploration")
    return {
        **settings,
        "imagined_steps": settings["n_steps"],
        "imagined_batch": settings["batch_size"],
        "n_steps": rounds * schedule.steps,
        "batch_size": rounds * schedule.steps * schedule.n_envs,  # unused: rollouts are not learned from
        "updates": math.ceil(imagined_episodes / episodes_per_update),
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


MAX_LAYERS, MAX_WIDTH = 10, 4096  # of policies
RANGES: Mapping[str, tuple[float, float]] = {  # hyper-parameter -> the smallest value and the largest
    # what is kept of each must fit into memory
    "evaluated_episodes": (1, 10_000),
    "imagined_episodes": (1, 100_000),
    "episodes_per_update": (1, 100_000),
    "warmup_episodes": (1, 1_000_000),
    "buffer_size": (1, 1_000_000),
    "batch_size": (1, 100_000),
    "minibatches": (1, 10_000),
    "n_epochs": (1, 1000),
    "n_steps": (1, 100_000),
    "updates_per_step": (1, 1000),
    "policy_delay": (1, 1000),
    **dict.fromkeys(("learning_rate", "final_learning_rate", "actor_learning_rate"), (0, 10)),
    **dict.fromkeys(("gamma", "gae_lambda", "tau", "noise_decay"), (0, 1)),
    **dict.fromkeys(("exploration", "final_exploration", "exploration_noise", "noise_sigma"), (0, 10)),
    **dict.fromkeys(("target_policy_noise", "target_noise_clip", "clip_range", "price_rate"), (0, 100)),
    **dict.fromkeys(("max_grad_norm", "weight_decay", "ent_coef"), (0, 100)),
    "log_std_init": (-20, 2),
}


def read_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """Parse hyper-parameters such as "learning_rate=1e-3" or "policy_kwargs.net_arch=[32, 32]", as YAML.

    Raises:
        HyperparameterError: a text is not KEY=VALUE, or its value is not plain YAML.
    """
    overrides: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        expected = f"expected a hyper-parameter such as learning_rate=0.001, got {shortened(text)!r}"
        if not equals:
            raise HyperparameterError(expected)
        try:
            overrides[key] = _number(parse_yaml(value))
        except ValueError as error:
            raise HyperparameterError(f"{expected} ({error})") from error
    return overrides


def with_overrides(spec: Algorithm, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return an algorithm's default hyper-parameters, with some values replaced.

    Args:
        spec: the algorithm.
        overrides: new values by key; `policy_kwargs.net_arch` stands for net_arch within policy_kwargs.

    Raises:
        HyperparameterError: the algorithm has no such hyper-parameter, or its value is of another type or
            out of range.
    """
    merged = spec.hyperparameters
    for key, value in overrides.items():
        *path, last = key.split(".")
        section: Any = merged
        for part in path:
            section = section.get(part) if isinstance(section, dict) else None
        if not isinstance(section, dict) or isinstance(section.get(last, {}), dict):
            known = list(_keys(spec.hyperparameters))
            hint = nearest_hint(key, known)
            raise HyperparameterError(
                f"{spec.name} has no hyper-parameter {key!r}.{hint} Known: {', '.join(known)}"
            )
        kind, fits = _kind(last, section[last])
        if not fits(value):
            raise HyperparameterError(
                f"{spec.name}: {key} must be {kind}, such as its default {section[last]!r}, "
                f"got {shortened(repr(value))}"
            )
        section[last] = value
    return merged


def _keys(data: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _kind(name: str, default: Any) -> tuple[str, Callable[[Any], bool]]:
    """Return the values that may replace a default, in words and as a predicate."""
    if isinstance(default, list):  # layer widths
        return (
            f"a list of at most {MAX_LAYERS} whole numbers from 1 to {MAX_WIDTH}",
            lambda value: (
                isinstance(value, list)
                and len(value) <= MAX_LAYERS
                and all(type(width) is int and 1 <= width <= MAX_WIDTH for width in value)
            ),
        )
    low, high = RANGES[name]
    whole = isinstance(default, int)
    types = (int,) if whole else (int, float)  # by their own type: True is an int too
    return (
        f"a {'whole ' if whole else ''}number from {low} to {high}",
        lambda value: type(value) in types and low <= value <= high,  # a NaN fails every comparison
    )


def _number(value: Any) -> Any:
    """Return text such as 1e-3 as a number; YAML 1.1 takes it for text, as it has no decimal point."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
