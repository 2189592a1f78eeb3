"""The flags of `prune`, and their record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunegym.agents.reuse import policy_folder
from prunegym.envs import ALLOCATIONS, Budget
from prunegym.pruning.plan import Amount
from prunegym.pruning.techniques import TECHNIQUES
from prunegym.scripts.options.network import TaskConfig, add_network_flags, task_config
from prunegym.scripts.options.output import OutputConfig, add_output_flags, output_config
from prunegym.scripts.options.parser import Parser, UsageError, whole
from prunegym.scripts.options.pruning import (
    PruningConfig,
    add_budget_flag,
    add_pruning_flags,
    amount_flag,
    pruning_config,
    read_single_budget,
)


@dataclass(frozen=True)
class PruneConfig:
    """A network, and where its plan comes from: a file, even amounts, a policy, or else an allocation."""

    task: TaskConfig
    budget: Budget
    pruning: PruningConfig
    plan: Path | None
    amounts: Mapping[str, Amount]  # technique -> amount at every site; if none, there is another source
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
        type=whole(1, 100_000),
        metavar="K",
        help="of the policy, beside its first choice; the best on validation is taken",
    )
    for kind in TECHNIQUES.values():
        parser.add_argument(
            amount_flag(kind),
            type=float,
            metavar="R",
            help=f"of every site where {kind.name} can decide, instead of a budget: {kind.help}",
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
    amounts = {kind: getattr(flags, kind.key) for kind in TECHNIQUES.values()}
    given = {kind.name: amount for kind, amount in amounts.items() if amount is not None}
    for kind, amount in amounts.items():
        flag = amount_flag(kind)
        if amount is not None and (flags.plan or flags.policy):
            raise UsageError(f"{flag} replaces --plan and --policy; give one of them")
        if amount is not None and kind.name not in flags.techniques:
            raise UsageError(
                f"{flag} sets the technique {kind.name}, which is not on; add "
                f"--techniques {' '.join([*flags.techniques, kind.name])}"
            )
        if amount is not None:
            kind.check(amount, flag)
    if flags.samples and not flags.policy:
        raise UsageError("--samples goes with --policy")
    budget = read_single_budget(flags)
    return PruneConfig(
        task_config(flags, calibration=flags.calibration, eval_data=flags.eval_data, score=flags.score),
        budget,
        pruning_config(flags),
        flags.plan,
        given,
        policy_folder(flags.policy) if flags.policy else None,
        flags.samples or 0,
        flags.allocation,
        output_config(flags),
    )
