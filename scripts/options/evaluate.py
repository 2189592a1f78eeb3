"""The flags of `evaluate`, and their record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunegym.scripts.options.network import (
    TaskConfig,
    add_compressed_flag,
    add_network_flags,
    add_score_flag,
    check_compressed,
    task_config,
)
from prunegym.scripts.options.output import OutputConfig, add_output_flags, output_config
from prunegym.scripts.options.parser import Parser, UsageError


@dataclass(frozen=True)
class EvaluateConfig:
    """A network, dense or compressed, and what it is measured on."""

    task: TaskConfig  # a dense network; of a compressed one all but network and images holds
    compressed: Path | None
    model: str | None  # as it was written: FILE.py:FACTORY, where that is what was compressed
    data: str | None  # as it was written
    output: OutputConfig | None  # None: only show the result
    as_json: bool


def parse(argv: Sequence[str]) -> EvaluateConfig:
    """Return the record of a command line and its YAML file.

    Raises:
        UsageError: a flag is unknown, its value wrong, or flags do not go together.
    """
    parser = Parser("evaluate", "Measure a network, dense or compressed, on its test images.")
    add_network_flags(parser)
    parser.set_defaults(model=None, data=None)
    add_compressed_flag(parser)
    add_score_flag(parser)
    add_output_flags(parser)
    flags = parser.parse(argv)
    if flags.compressed:
        check_compressed(flags)
    if flags.data == "none" and not flags.score:
        raise UsageError("accuracy needs images with labels; name some with --data")
    return EvaluateConfig(
        task_config(flags, score=flags.score),
        flags.compressed,
        flags.model,
        flags.data,
        output_config(flags) if flags.out else None,
        flags.json,
    )
