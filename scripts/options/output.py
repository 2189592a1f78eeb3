"""Flags about what is written and shown, and their record."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunegym.scripts.options.parser import Parser, UsageError, plain


@dataclass(frozen=True)
class OutputConfig:
    """Where results go, and how they are shown."""

    folder: Path
    overwrite: bool  # replace the run that the folder holds
    resume: bool  # continue the run that the folder holds
    as_json: bool  # print the record as JSON instead of a table
    flags: Mapping[str, Any]  # all flags of the verb as plain data, for `config.json`


def add_output_flags(parser: Parser, *, out: bool = True, resume: bool = False) -> None:
    """Add the flags about what is written and shown."""
    if out:
        parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the results")
        parser.add_argument("--overwrite", action="store_true", help="replace the run that --out holds")
    if resume:
        parser.add_argument("--resume", action="store_true", help="go on with the run that --out holds")
    parser.add_argument("--json", action="store_true", help="print the record as JSON instead of a table")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def output_config(
    flags: argparse.Namespace, *, default: Path | None = None, resume: bool = False
) -> OutputConfig:
    """Return where results go.

    Args:
        flags: parsed, with everything filled in that `config.json` is to hold.
        default: the folder if --out names none; without one it must.
        resume: whether an earlier run is to be continued.

    Raises:
        UsageError: no folder is named.
    """
    folder = flags.out or default
    if folder is None:
        raise UsageError("name the folder for the results with --out")
    # absolute, since a network's code may change the working folder
    return OutputConfig(folder.absolute(), flags.overwrite, resume, flags.json, plain(flags))
