"""The flags of `describe`, and their record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunegym.envs import Limits, NetworkSource
from prunegym.pruning.method import Method
from prunegym.scripts.options.network import (
    add_compressed_flag,
    add_network_flags,
    check_compressed,
    network_config,
)
from prunegym.scripts.options.output import add_output_flags
from prunegym.scripts.options.parser import Parser
from prunegym.scripts.options.pruning import add_pruning_flags, pruning_config


@dataclass(frozen=True)
class DescribeConfig:
    """A network, dense or compressed, and what would be asked of it."""

    network: NetworkSource
    compressed: Path | None
    model: str | None  # as it was written: FILE.py:FACTORY, where that is what was compressed
    method: Method
    limits: Limits
    only: tuple[str, ...]
    protect: tuple[str, ...]
    as_json: bool


def parse(argv: Sequence[str]) -> DescribeConfig:
    """Return the record of a command line and its YAML file.

    Raises:
        UsageError: a flag is unknown, its value wrong, or flags do not go together.
        PruningError: a name is unknown, or a largest ratio not in [0, 1).
    """
    parser = Parser(
        "describe",
        "List a network's channel groups, what is frozen and why, and the budgets that can be reached.",
    )
    add_network_flags(parser)
    parser.set_defaults(model=None)
    add_pruning_flags(parser)
    add_compressed_flag(parser)
    add_output_flags(parser, out=False)
    flags = parser.parse(argv)
    if flags.compressed:
        check_compressed(flags)
    pruning = pruning_config(flags)
    return DescribeConfig(
        network_config(flags),
        flags.compressed,
        flags.model,
        pruning.method,
        pruning.limits,
        pruning.only,
        pruning.protect,
        flags.json,
    )
