"""The flags of `train-per-input`, and their record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunegym.agents.learning.algorithms import read_overrides, with_overrides
from prunegym.agents.per_input.ppo import PER_INPUT
from prunegym.agents.per_input.rounds import RoundsConfig
from prunegym.envs import Budget, parse_budget
from prunegym.pruning.techniques import TECHNIQUES
from prunegym.scripts.options.learning import add_per_input_flags
from prunegym.scripts.options.network import TaskConfig, add_network_flags, task_config
from prunegym.scripts.options.output import OutputConfig, add_output_flags, output_config
from prunegym.scripts.options.parser import Parser, UsageError
from prunegym.scripts.options.pruning import BUDGET, PruningConfig, add_pruning_flags, pruning_config


@dataclass(frozen=True)
class TrainPerInputConfig:
    """A network, what its inputs may cost on average, and how a policy for them is learned."""

    task: TaskConfig
    budget: Budget  # of multiply-adds alone
    asked: tuple[str, ...]  # the budget as it was written
    pruning: PruningConfig
    plan: Path | None  # to depart from
    static_ratio: float  # of every group, without a plan
    rounds: RoundsConfig
    output: OutputConfig


def build_parser() -> Parser:
    """Return the parser of this verb."""
    parser = Parser(
        "train-per-input",
        "Learn a policy that sets runtime ratios for each input; write network, plan, metrics and pictures.",
    )
    add_network_flags(parser)
    parser.add_argument(
        "--budget",
        nargs="+",
        action="extend",
        metavar="macs=SHARE",
        help=f"multiply-adds that may remain, on average over inputs (default {BUDGET})",
    )
    add_pruning_flags(parser, per_input=True)
    add_per_input_flags(parser)
    add_output_flags(parser, resume=True)
    return parser


def parse(argv: Sequence[str]) -> TrainPerInputConfig:
    """Return the record of a command line and its YAML file.

    Raises:
        UsageError: a flag is unknown, its value wrong, or flags do not go together.
        PruningError: a name is unknown, or a budget wrong.
        AgentError: there is no such hyper-parameter.
    """
    flags = build_parser().parse(argv)
    flags.budget = flags.budget or [BUDGET]
    budget = parse_budget(flags.budget)
    if not isinstance(budget, Budget) or set(budget.shares) != {"macs"}:
        raise UsageError("train-per-input keeps to multiply-adds on average; give one --budget macs=SHARE")
    if flags.plan and flags.static_ratio:
        raise UsageError("--plan holds the static ratios; leave out --static-ratio")
    hyperparameters = read_overrides(flags.hyper)
    with_overrides(PER_INPUT, hyperparameters)  # unknown names are refused before the work begins
    pruning = pruning_config(flags)
    rounds = RoundsConfig(
        episodes=flags.episodes,
        rounds=flags.rounds,
        tune_epochs=flags.tune_epochs,
        max_runtime_ratio=pruning.limits.of(TECHNIQUES["gates"]),
        seed=flags.seed,
        hyperparameters=hyperparameters,
    )
    return TrainPerInputConfig(
        task_config(flags, calibration=flags.calibration, eval_data=flags.eval_data),
        budget,
        tuple(flags.budget),
        pruning,
        flags.plan,
        flags.static_ratio,
        rounds,
        output_config(flags, default=Path("runs") / flags.model.replace("/", "-"), resume=flags.resume),
    )
