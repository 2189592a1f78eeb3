"""Compression in one call: a trained network, images and a budget in, a compressed network out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from prunegym.agents.learning.algorithms import ALGORITHMS, DEFAULT_ALGORITHM
from prunegym.agents.learning.training import Recording, learn
from prunegym.agents.rollout import EpisodeResult
from prunegym.agents.search import choose_on_validation
from prunegym.envs import make_env
from prunegym.envs.problem import Batches
from prunegym.pruning.metrics import ScoreFunction


@dataclass(frozen=True)
class Compression:
    """A compressed network and the episode that decided it."""

    model: nn.Module
    result: EpisodeResult  # plan, reward, and the shares of the dense network that remain


def compress(
    model: nn.Module,
    *,
    calibration: Batches,
    budget: Mapping[str, float],
    reward: Batches | None = None,
    score: ScoreFunction | None = None,
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
        budget: shares of the dense network that may remain, such as {"macs": 0.5}.
        reward: batches on which plans are evaluated while learning.
        score: takes their place: any function of a compressed network, higher is better.
        episodes: number of plans to evaluate.
        algorithm: a name in `ALGORITHMS`.
        seed: seed of all random numbers.
        progress: show a bar on standard error.
        settings: further settings of the environment, see `make_env`, such as `validation`, batches that
            choose between the learned policy's plan and the best plan evaluated, or `protect=("stem*",)`.

    Raises:
        UnknownNameError: the algorithm or a setting is unknown.
        AgentError: `episodes` is not positive.
        PruningError: see `PruningProblem.from_model`; there must be reward batches or a score function, not
            both.

    Example:
        small = compress(net, calibration=train, reward=held_out, budget={"macs": 0.5}).model
    """
    env = make_env(
        model=model,
        calibration=calibration,
        reward=reward,
        score=score,
        budget=budget,
        seed=seed,
        **{"actions": ALGORITHMS[algorithm].actions, **settings},
    )
    recording = Recording(progress=progress)
    learned = learn(env, algorithm=algorithm, episodes=episodes, seed=seed, recording=recording)
    chosen = choose_on_validation(env, [learned.final, learned.best])
    return Compression(env.problem.apply(chosen.plan), chosen)
