"""The flags of `report`, and their record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunegym.scripts.options.parser import Parser, UsageError


@dataclass(frozen=True)
class ReportConfig:
    """A run, and the page about it."""

    run: Path
    page: Path


def parse(argv: Sequence[str]) -> ReportConfig:
    """Return the record of a command line and its YAML file.

    Raises:
        UsageError: a flag is unknown, its value wrong, or --out names a folder.
    """
    parser = Parser(
        "report",
        "Build one self-contained HTML page from a run's folder: figures, pictures, plan, and what speaks "
        "for it.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a folder that train wrote, or is writing")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (default: RUN/report.html)")
    flags = parser.parse(argv)
    page = flags.out or flags.run / "report.html"
    if page.is_dir():
        raise UsageError(f"--out names a file, and {page} is a folder; give {page / 'report.html'}")
    return ReportConfig(flags.run, page)
