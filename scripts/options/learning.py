"""Flags about how decisions are learned or searched for, and their record."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunegym.agents import ALGORITHMS, DEFAULT_ALGORITHM, SEARCHES
from prunegym.agents.learning.algorithms import read_overrides, with_overrides
from prunegym.agents.reuse import policy_folder
from prunegym.pruning.registry import unknown_name
from prunegym.scripts.options.network import further_networks
from prunegym.scripts.options.parser import MAX_EPISODES, Parser, UsageError, whole

BASELINE = "random"  # where none is named


@dataclass(frozen=True)
class LearningOptions:
    """How decisions are learned or searched for, and what that is compared with."""

    algorithm: str
    episodes: int
    baselines: tuple[str, ...]
    hyperparameters: Mapping[str, Any]  # that differ from the algorithm's own
    initial_policy: Path | None  # its folder
    also: Mapping[str, Path | None]  # further networks to learn on, with their weights
    n_envs: int
    cluster: str | None
    first_images: int | None
    dense_reward: bool

    @property
    def reward_settings(self) -> dict[str, Any]:
        """Settings of the environment that concern its reward."""
        return {"first_images": self.first_images, "dense_reward": self.dense_reward}


def add_learning_flags(parser: Parser) -> None:
    """Add the flags about how decisions are learned or searched for."""
    parser.add_argument(
        "--algo",
        default=DEFAULT_ALGORITHM,
        metavar="NAME",
        help=f"learns a policy: {', '.join(ALGORITHMS)} (default {DEFAULT_ALGORITHM}); "
        f"searches for a plan: {', '.join(SEARCHES)}",
    )
    parser.add_argument(
        "--episodes", type=whole(1, MAX_EPISODES), default=200, metavar="N", help="plans to evaluate (200)"
    )
    parser.add_argument(
        "--baselines",
        nargs="*",
        choices=["sensitivity", *SEARCHES],
        metavar="NAME",
        help=f"to compare with, for one network and one budget: sensitivity, {', '.join(SEARCHES)} "
        f"(default {BASELINE})",
    )
    add_hyper_flag(parser)
    parser.add_argument("--init-policy", metavar="DIR", help="go on from a policy: a folder, or builtin")
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="NAME=WEIGHTS",
        help="a further network to learn on, for a policy for reuse; repeatable",
    )
    parser.add_argument(
        "--n-envs", type=whole(1, 1024), default=1, metavar="K", help="processes that evaluate (1)"
    )
    parser.add_argument(
        "--cluster",
        nargs="?",
        const="auto",
        metavar="HOST:PORT",
        help="evaluate in --n-envs processes of a Ray cluster: the one at this address; without an address "
        "the one this machine is part of, else one of this machine alone (local: that in any case)",
    )
    parser.add_argument(
        "--first-images",
        type=whole(1, 1_000_000_000),
        metavar="N",
        help="score plans on N reward images first, and only promising ones on all",
    )
    parser.add_argument(
        "--dense-reward", action="store_true", help="reward each step by the loss expected of its site"
    )


def add_per_input_flags(parser: Parser) -> None:
    """Add the flags about how decisions for each input are learned."""
    parser.add_argument(
        "--episodes",
        type=whole(1, MAX_EPISODES),
        default=25_000,
        metavar="N",
        help="inputs in each round (25000)",
    )
    parser.add_argument("--rounds", type=whole(1, 1000), default=2, metavar="N", help="of learning (2)")
    parser.add_argument(
        "--tune-epochs",
        type=whole(0, 10_000),
        default=0,
        metavar="N",
        help="of fine-tuning after each round, by distillation (0)",
    )
    parser.add_argument("--plan", type=Path, metavar="FILE", help="static ratios, and those to depart from")
    parser.add_argument(
        "--static-ratio", type=float, default=0.0, metavar="R", help="of every group, without --plan (0)"
    )
    add_hyper_flag(parser)


def add_hyper_flag(parser: Parser) -> None:
    """Add the flag for hyper-parameters."""
    parser.add_argument(
        "--hyper",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="hyper-parameter of the algorithm, such as learning_rate=0.001; repeatable",
    )


def learning_config(flags: argparse.Namespace, *, reusable: bool) -> LearningOptions:
    """Return how flags say that decisions are learned; the default of --baselines is filled in.

    Args:
        flags: parsed.
        reusable: whether a policy for several networks or budgets is asked for.

    Raises:
        UsageError: flags do not go together.
        AgentError: there is no such algorithm or hyper-parameter.
    """
    if flags.score and flags.first_images:
        raise UsageError("--score judges whole networks; leave out --first-images")
    if flags.algo in ALGORITHMS:
        with_overrides(ALGORITHMS[flags.algo], read_overrides(flags.hyper))
    elif flags.algo not in SEARCHES:
        raise unknown_name("algorithm", flags.algo, [*ALGORITHMS, *SEARCHES])
    elif flags.hyper or flags.init_policy:
        raise UsageError(f"{flags.algo} learns no policy; leave out --hyper and --init-policy")
    if reusable and flags.baselines:
        raise UsageError("--baselines go with one network and one budget; leave them out")
    if reusable and flags.algo in SEARCHES:
        raise UsageError(f"{flags.algo} searches for one plan; give one network and one budget")
    if flags.baselines is None:
        flags.baselines = [BASELINE]
    return LearningOptions(
        algorithm=flags.algo,
        episodes=flags.episodes,
        baselines=tuple(flags.baselines),
        hyperparameters=read_overrides(flags.hyper),
        initial_policy=policy_folder(flags.init_policy) if flags.init_policy else None,
        also=further_networks(flags),
        n_envs=flags.n_envs,
        cluster=flags.cluster,
        first_images=flags.first_images,
        dense_reward=flags.dense_reward,
    )
