"""Flags that say how much is pruned, how, and where, and their record."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from prunegym.envs import Budget, BudgetRange, Limits, parse_budget
from prunegym.envs.budget import measures_of
from prunegym.pruning.calibration.synthesis import SYNTHESES
from prunegym.pruning.compensation import COMPENSATIONS
from prunegym.pruning.criteria import CRITERIA
from prunegym.pruning.decisions import technique_kinds
from prunegym.pruning.measures import MEASURES
from prunegym.pruning.method import DEFAULT_METHOD, Method
from prunegym.pruning.technique import Technique
from prunegym.pruning.techniques import TECHNIQUES
from prunegym.scripts.options.network import add_eval_data_flag, add_score_flag
from prunegym.scripts.options.parser import Parser, UsageError, whole

BUDGET = "macs=0.5"  # where none is named
PER_INPUT_TECHNIQUES = ("channels", "gates")
MAX_PER_INPUT_RATIO = 0.9


@dataclass(frozen=True)
class PruningConfig:
    """How plans are applied, how far they may go, and on which layers."""

    method: Method
    limits: Limits
    only: tuple[str, ...] = ()  # patterns of layers to admit
    protect: tuple[str, ...] = ()  # patterns of layers to freeze


def amount_flag(kind: type[Technique]) -> str:
    """Return the flag that sets a technique's amount."""
    return f"--{kind.key.replace('_', '-')}"


def limit_flag(kind: type[Technique]) -> str:
    """Return the flag that limits a technique's amount."""
    return f"--max-{kind.key.replace('_', '-')}"


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
            "--techniques",
            nargs="+",
            default=list(DEFAULT_METHOD.techniques),
            metavar="NAME",
            help=f"kinds of compression to use (default {' '.join(DEFAULT_METHOD.techniques)}): "
            f"{', '.join(TECHNIQUES)}",
        )
    for name in PER_INPUT_TECHNIQUES if per_input else TECHNIQUES:
        kind = TECHNIQUES[name]
        usual = MAX_PER_INPUT_RATIO if per_input else kind.limit
        parser.add_argument(
            limit_flag(kind),
            type=float,
            metavar="R",
            help=f"the farthest that {kind.key} may go at a site (default {usual:g}): {kind.help}",
        )
    parser.add_argument(
        "--round-to", type=whole(1, 65_536), default=1, metavar="N", help="keep units in multiples of N"
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
        UnknownNameError: there is no such criterion, compensation or technique.
        BudgetError: a limit makes no sense.
    """
    CRITERIA[flags.criterion]
    COMPENSATIONS[flags.compensation]
    per_input = not hasattr(flags, "techniques")
    names = PER_INPUT_TECHNIQUES if per_input else tuple(flags.techniques)
    kinds = technique_kinds(names)
    given = {kind.key: getattr(flags, f"max_{kind.key}", None) for kind in TECHNIQUES.values()}
    for kind in TECHNIQUES.values():
        if given[kind.key] is not None and kind not in kinds:
            raise UsageError(
                f"{limit_flag(kind)} limits the technique {kind.name}, which is not on; add "
                f"--techniques {' '.join([*names, kind.name])}"
            )
    usual = {kind.key: MAX_PER_INPUT_RATIO for kind in kinds} if per_input else {}
    return PruningConfig(
        Method(
            criterion=flags.criterion,
            compensation=flags.compensation,
            round_to=flags.round_to,
            techniques=tuple(kind.name for kind in kinds),
        ),
        Limits({**usual, **{key: amount for key, amount in given.items() if amount is not None}}),
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
        help=f"what may remain, such as macs=0.5 bytes=0.6 (default {BUDGET}), of {', '.join(MEASURES)}; "
        "latency=0.6, on this device: no gates, and its table is measured first, see `prunegym latency`"
        f"{also}",
    )


def read_budget(flags: argparse.Namespace) -> Budget | BudgetRange:
    """Return the budget that --budget asks for, half the multiply-adds if it is not given.

    Raises:
        UsageError: a technique is asked for beside it that one of its measures cannot price.
    """
    flags.budget = flags.budget or [BUDGET]
    budget = parse_budget(flags.budget)
    for measure in measures_of(budget):
        for name in MEASURES[measure].unpriced:
            kind = TECHNIQUES[name]
            limit = getattr(flags, f"max_{kind.key}", None)
            if limit is not None and limit != kind.neutral:
                raise UsageError(
                    f"{limit_flag(kind)} {limit:g} asks for {name}, which {measure} has "
                    f"no price for; leave it out with a {measure} budget"
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
