"""The flags of `prune`, and their record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunegym.agents.reuse import policy_folder
from prunegym.envs import ALLOCATIONS, Budget
from prunegym.scripts.options.network import TaskConfig, add_network_flags, task_config
from prunegym.scripts.options.output import OutputConfig, add_output_flags, output_config
from prunegym.scripts.options.parser import Parser, UsageError, positive
from prunegym.scripts.options.pruning import (
    PruningConfig,
    add_budget_flag,
    add_pruning_flags,
    pruning_config,
    read_single_budget,
)


@dataclass(frozen=True)
class PruneConfig:
    """A network, and where its plan comes from: a file, even ratios, a policy, or else an allocation."""

    task: TaskConfig
    budget: Budget
    pruning: PruningConfig
    plan: Path | None
    ratios: tuple[float, float] | None  # static and runtime, of every group
    policy: Path | None  # its folder
    samples: int  # of the policy, beside its first choice
    allocation: str
    output: OutputConfig


def build_parser() -> Parser:
    """Return the parser of this verb."""
    parser = Parser(
        "prune", "Carry out a plan, a learned policy, or an even allocation; write the compressed network."
    )
    add_network_flags(parser)
    add_budget_flag(parser)
    add_pruning_flags(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--plan", type=Path, metavar="FILE", help="a plan.json")
    how.add_argument(
        "--policy",
        metavar="DIR",
        help="within --budget: a policy that train wrote, or builtin, the one that ships",
    )
    how.add_argument(
        "--allocation", choices=list(ALLOCATIONS), default="uniform", help="within --budget (default uniform)"
    )
    parser.add_argument(
        "--samples",
        type=positive,
        metavar="K",
        help="of the policy, beside its first choice; the best on validation is taken",
    )
    parser.add_argument("--static-ratio", type=float, metavar="R", help="of every group, instead of a budget")
    parser.add_argument(
        "--runtime-ratio", type=float, metavar="R", help="of every group that takes a gate, likewise"
    )
    add_output_flags(parser)
    return parser


def parse(argv: Sequence[str]) -> PruneConfig:
    """Return the record of a command line and its YAML file.

    Raises:
        UsageError: a flag is unknown, its value wrong, or flags do not go together.
        PruningError: a name is unknown, or a budget wrong.
    """
    flags = build_parser().parse(argv)
    ratios = None
    if flags.static_ratio is not None or flags.runtime_ratio is not None:
        if flags.plan or flags.policy:
            raise UsageError(
                "--static-ratio and --runtime-ratio replace --plan and --policy; give one of them"
            )
        ratios = flags.static_ratio or 0.0, flags.runtime_ratio or 0.0
    if flags.samples and not flags.policy:
        raise UsageError("--samples goes with --policy")
    budget = read_single_budget(flags)
    return PruneConfig(
        task_config(flags, calibration=flags.calibration, eval_data=flags.eval_data, score=flags.score),
        budget,
        pruning_config(flags),
        flags.plan,
        ratios,
        policy_folder(flags.policy) if flags.policy else None,
        flags.samples or 0,
        flags.allocation,
        output_config(flags),
    )
