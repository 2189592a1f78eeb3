"""The flags of `train`, and their record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunegym.envs import Budget, BudgetRange
from prunegym.scripts.options.learning import LearningOptions, add_learning_flags, learning_config
from prunegym.scripts.options.network import TaskConfig, add_network_flags, task_config
from prunegym.scripts.options.output import OutputConfig, add_output_flags, output_config
from prunegym.scripts.options.parser import Parser
from prunegym.scripts.options.pruning import (
    PruningConfig,
    add_budget_flag,
    add_pruning_flags,
    pruning_config,
    read_budget,
)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `train`: the network, the budget, and how a policy or plan is found."""

    task: TaskConfig
    budget: Budget | BudgetRange
    asked: tuple[str, ...]  # the budget as it was written
    pruning: PruningConfig
    learning: LearningOptions
    output: OutputConfig


def build_parser() -> Parser:
    """Return the parser of this verb."""
    parser = Parser(
        "train",
        "Learn a pruning policy; write policy, plan, compressed network, metrics, pictures and curves.",
    )
    add_network_flags(parser)
    add_budget_flag(parser, ranges=True)
    add_pruning_flags(parser)
    add_learning_flags(parser)
    add_output_flags(parser, resume=True)
    return parser


def parse(argv: Sequence[str]) -> TrainConfig:
    """Return the record of a command line and its YAML file.

    Raises:
        UsageError: a flag is unknown, its value wrong, or flags do not go together.
        PruningError: a name is unknown, or a budget wrong.
        AgentError: there is no such algorithm or hyper-parameter.
    """
    flags = build_parser().parse(argv)
    budget = read_budget(flags)
    learning = learning_config(flags, reusable=bool(flags.also) or isinstance(budget, BudgetRange))
    return TrainConfig(
        task_config(flags, calibration=flags.calibration, eval_data=flags.eval_data, score=flags.score),
        budget,
        tuple(flags.budget),
        pruning_config(flags),
        learning,
        output_config(flags, default=Path("runs") / flags.model.replace("/", "-"), resume=flags.resume),
    )
