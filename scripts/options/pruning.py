"""Flags that say how much is pruned, how, and where, and their record."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from prunegym.envs import Budget, BudgetRange, Limits, parse_budget
from prunegym.envs.budget import leading_measure
from prunegym.pruning.apply import Method
from prunegym.pruning.calibration.synthesis import SYNTHESES
from prunegym.pruning.compensation import COMPENSATIONS
from prunegym.pruning.criteria import CRITERIA
from prunegym.scripts.options.network import add_eval_data_flag, add_score_flag
from prunegym.scripts.options.parser import Parser, UsageError, positive

BUDGET = "macs=0.5"  # where none is named


@dataclass(frozen=True)
class PruningConfig:
    """How plans are applied, how far they may go, and on which layers."""

    method: Method
    max_static_ratio: float
    max_runtime_ratio: float
    only: tuple[str, ...] = ()  # patterns of layers to admit
    protect: tuple[str, ...] = ()  # patterns of layers to freeze

    @property
    def limits(self) -> Limits:
        """The largest ratios of a group.

        Raises:
            BudgetError: a ratio is not in [0, 1).
        """
        return Limits(static=self.max_static_ratio, runtime=self.max_runtime_ratio)


def add_pruning_flags(parser: Parser, *, per_input: bool = False) -> None:
    """Add the flags that say how a plan is applied, and to which layers; or how for each input."""
    compensation = "least-squares-progressive" if per_input else "least-squares"
    parser.add_argument("--criterion", default="l1", metavar="NAME", help=f"one of: {', '.join(CRITERIA)}")
    parser.add_argument(
        "--compensation",
        default=compensation,
        metavar="NAME",
        help=f"one of: {', '.join(COMPENSATIONS)} (default {compensation})",
    )
    parser.add_argument(
        "--calibration",
        metavar="NAME",
        help="data (default where there is some), or made from the weights alone: "
        f"{', '.join(SYNTHESES)} (default: distilled)",
    )
    add_eval_data_flag(parser)
    if not per_input:
        add_score_flag(parser)
    parser.add_argument(
        "--max-static-ratio", type=float, default=0.9, metavar="R", help="of any group (default 0.9)"
    )
    usual = "0.9" if per_input else "0.5; with a latency budget 0"
    parser.add_argument(
        "--max-runtime-ratio",
        type=float,
        default=0.9 if per_input else None,
        metavar="R",
        help=f"likewise (default {usual}){'' if per_input else '; 0: no gates'}",
    )
    parser.add_argument(
        "--round-to", type=positive, default=1, metavar="N", help="keep units in multiples of N"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="admit groups whose writers all match; repeatable",
    )
    parser.add_argument(
        "--protect",
        action="append",
        default=[],
        metavar="PATTERN",
        help="freeze groups with a matching writer; repeatable",
    )


def pruning_config(flags: argparse.Namespace) -> PruningConfig:
    """Return how flags say that plans are applied.

    Raises:
        UnknownNameError: there is no such criterion or compensation.
    """
    CRITERIA[flags.criterion]
    COMPENSATIONS[flags.compensation]
    return PruningConfig(
        Method(criterion=flags.criterion, compensation=flags.compensation, round_to=flags.round_to),
        flags.max_static_ratio,
        flags.max_runtime_ratio,
        tuple(flags.only),
        tuple(flags.protect),
    )


def add_budget_flag(parser: Parser, *, ranges: bool = False) -> None:
    """Add the flag for budgets, and ranges of them."""
    also = "; a range, macs=0.3..0.8, learns a policy for reuse" if ranges else ""
    parser.add_argument(
        "--budget",
        nargs="+",
        action="extend",
        metavar="NAME=SHARE",
        help=f"what may remain, such as macs=0.5 params=0.6 (default {BUDGET}); latency=0.6, on this device: "
        f"no gates, and its table is measured first, see `prunegym latency`{also}",
    )


def read_budget(flags: argparse.Namespace) -> Budget | BudgetRange:
    """Return the budget that --budget asks for, half the multiply-adds if it is not given.

    The default of --max-runtime-ratio depends on it; both are filled in.

    Raises:
        UsageError: it names latency, and gates are asked for beside it.
    """
    flags.budget = flags.budget or [BUDGET]
    budget = parse_budget(flags.budget)
    timed = leading_measure(budget) == "latency"
    if flags.max_runtime_ratio is None:
        flags.max_runtime_ratio = 0.0 if timed else 0.5
    elif timed and flags.max_runtime_ratio > 0:
        raise UsageError(
            f"--max-runtime-ratio {flags.max_runtime_ratio:g} asks for gates, whose latency no table knows; "
            "leave it out with a latency budget"
        )
    return budget


def read_single_budget(flags: argparse.Namespace) -> Budget:
    """Return the budget that --budget asks for; see `read_budget`.

    Raises:
        UsageError: it is a range.
    """
    budget = read_budget(flags)
    if isinstance(budget, BudgetRange):
        raise UsageError(
            f"{' '.join(flags.budget)} is a range, which only train understands; give one budget"
        )
    return budget
