"""The flags of `latency`, and their record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prunegym.envs import NetworkSource
from prunegym.scripts.options.network import add_network_flags, network_config
from prunegym.scripts.options.output import add_output_flags
from prunegym.scripts.options.parser import Parser


@dataclass(frozen=True)
class LatencyConfig:
    """A network whose layers are timed, and how."""

    network: NetworkSource
    seed: int
    device: str
    remeasure: bool  # whatever the cache holds
    progress: bool
    as_json: bool


def parse(argv: Sequence[str]) -> LatencyConfig:
    """Return the record of a command line and its YAML file.

    Raises:
        UsageError: a flag is unknown, or its value wrong.
    """
    parser = Parser(
        "latency",
        "Measure what a network's layers take on this device, at the widths that pruning may leave them. The "
        "table is kept in the cache and prices latency budgets; it is measured anew for another device, "
        "number of threads or torch.",
    )
    add_network_flags(parser)
    parser.add_argument("--remeasure", action="store_true", help="whatever the cache holds")
    add_output_flags(parser, out=False)
    flags = parser.parse(argv)
    return LatencyConfig(
        network_config(flags), flags.seed, flags.device, flags.remeasure, not flags.quiet, flags.json
    )
