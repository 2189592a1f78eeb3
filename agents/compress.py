"""From a trained network, its images and a budget to a compressed network, in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import gymnasium as gym
from torch import Tensor, nn

from prunegym.agents.interface import GymEnv, pruning_environment
from prunegym.agents.learning.algorithms import ALGORITHMS, DEFAULT_ALGORITHM
from prunegym.agents.learning.training import learn
from prunegym.agents.rollout import EpisodeResult
from prunegym.agents.search import choose_on_validation

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Compression:
    """A compressed network and the episode that decided it."""

    model: nn.Module
    result: EpisodeResult  # plan, reward, and the shares of the dense network that remain


def compress(
    model: nn.Module,
    *,
    calibration: Batches,
    reward: Batches | None = None,
    score: Callable[[nn.Module], float] | None = None,
    budget: Mapping[str, float],
    validation: Batches | None = None,
    episodes: int = 200,
    algorithm: str = DEFAULT_ALGORITHM,
    seed: int = 0,
    progress: bool = False,
    **settings: Any,
) -> Compression:
    """Learn how much to prune where, and return the pruned network; `model` is never changed.

    Args:
        model: a trained network.
        calibration: batches of (images, labels), or a DataLoader of them, for compensation and gates.
        reward: batches that score a plan while learning.
        score: takes their place: any function of a compressed network, higher being better.
        budget: shares of the dense network that may remain, such as {"macs": 0.5}.
        validation: batches that choose between the learned policy's plan and the best plan seen; the reward
            images where there are none.
        episodes: plans to evaluate.
        algorithm: a name in `ALGORITHMS`.
        seed: of everything random.
        progress: show a bar on standard error.
        settings: further arguments of the environment, such as `protect=("stem*",)`.

    Raises:
        AgentError: the algorithm is unknown or `episodes` is not positive.
        PruningError: see the environment; there must be reward batches or a score function, not both.

    Example:
        small = compress(net, calibration=train, reward=held_out, budget={"macs": 0.5}).model
    """
    settings = {"actions": ALGORITHMS[algorithm].actions, **settings}
    env = cast(
        GymEnv,
        gym.make(
            "prunegym/LayerPruning-v0",
            model=model,
            calibration=calibration,
            reward=reward,
            score=score,
            validation=validation,
            budget=budget,
            seed=seed,
            **settings,
        ),
    )
    learned = learn(env, algorithm=algorithm, episodes=episodes, seed=seed, progress=progress)
    chosen = choose_on_validation(env, [learned.final, learned.best])
    return Compression(pruning_environment(env).apply(chosen.plan), chosen)
