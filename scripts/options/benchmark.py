"""The flags of `benchmark`, and their record."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from prunegym.scripts.options.output import add_output_flags
from prunegym.scripts.options.parser import MAX_EPISODES, MAX_SEED, Parser, UsageError, number, whole


@dataclass(frozen=True)
class BenchmarkConfig:
    """A benchmark's settings; None stands for its own default."""

    name: str
    assets: Path = Path()  # images and weights
    networks: tuple[str, ...] | None = None
    episodes: int | None = None
    out: Path | None = None  # JSON file of results so far
    table: Path | None = None  # Markdown file of the results
    share: float = 1.0  # of its cases
    only: str | None = None  # the one case to run
    device: str = "auto"
    seed: int = 0
    progress: bool = False
    as_json: bool = False


class Heeding(Protocol):
    """A benchmark, as far as parsing its flags needs it."""

    @property
    def help(self) -> str:
        """Its line in `--help`."""

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags it heeds, of those that not all benchmarks do."""


def parse(
    argv: Sequence[str], benchmarks: Mapping[str, Heeding], *, networks: Collection[str]
) -> BenchmarkConfig:
    """Return the record of a command line and its YAML file.

    Args:
        argv: the command line.
        benchmarks: all there are.
        networks: the names that --networks takes.

    Raises:
        UsageError: a flag is unknown or missing, its value wrong, or the benchmark does not heed it.
    """
    parser = Parser(
        "benchmark", "Measure this installation on pretrained CIFAR-10 ResNets: one benchmark per name."
    )
    names = "; ".join(f"{name}: {one.help}" for name, one in benchmarks.items())
    parser.add_argument("name", choices=list(benchmarks), help=names)
    parser.add_argument(
        "--assets",
        type=Path,
        default=Path(os.environ["PRUNEGYM_DATA"]) if os.environ.get("PRUNEGYM_DATA") else None,
        metavar="DIR",
        help="holds cifar10/cifar10_subset.npz and weights/*.th, see the README (default $PRUNEGYM_DATA)",
    )
    parser.add_argument(
        "--networks", nargs="+", choices=list(networks), metavar="NAME", help="instead of the benchmark's own"
    )
    parser.add_argument(
        "--episodes",
        type=whole(1, MAX_EPISODES),
        metavar="N",
        help="env: 20, reward: 60 a network; search: 400; transfer: 600 a policy; per-input: 25000 inputs",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="JSON file of results so far; what it holds is not measured again",
    )
    parser.add_argument("--table", type=Path, metavar="FILE.md", help="write the results there too")
    parser.add_argument(
        "--share", type=number(0.001, 1), metavar="S", help="of the cases of faults (1: all of them)"
    )
    parser.add_argument("--only", metavar="CASE", help="repeat this case of faults, such as kills/17")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto (default), cpu, cuda, ...")
    parser.add_argument("--seed", type=whole(0, MAX_SEED), metavar="N", help="of all that is drawn (0)")
    add_output_flags(parser, out=False)
    flags = parser.parse(argv)
    heeded = benchmarks[flags.name].flags
    for flag in ("networks", "episodes", "seed", "out", "table", "share", "only"):
        if vars(flags)[flag] is not None and flag not in heeded:
            takers = ", ".join(name for name, one in benchmarks.items() if flag in one.flags)
            raise UsageError(f"--{flag} goes with {takers}; leave it out with {flags.name}")
    if "assets" in heeded:
        if flags.assets is None:
            raise UsageError(
                "name the folder of images and weights with --assets, or set PRUNEGYM_DATA to it "
                "(the README says where to get them)"
            )
        if not flags.assets.is_dir():
            raise UsageError(
                f"there is no folder {flags.assets}; name it with --assets, or set PRUNEGYM_DATA to it "
                "(the README says where to get its files)"
            )
    return BenchmarkConfig(
        name=flags.name,
        assets=flags.assets or Path(),
        networks=tuple(flags.networks) if flags.networks else None,
        episodes=flags.episodes,
        out=flags.out,
        table=flags.table,
        share=flags.share or 1.0,
        only=flags.only,
        device=flags.device,
        seed=flags.seed or 0,
        progress=not flags.quiet,
        as_json=flags.json,
    )
