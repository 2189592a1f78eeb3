"""Measure this installation on pretrained CIFAR-10 ResNets: one benchmark per name."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prunegym.scripts import options
from prunegym.scripts.benchmarks import (
    coverage,
    data_free,
    environment,
    per_input,
    reward,
    runtime,
    search,
    transfer,
)
from prunegym.scripts.benchmarks.assets import WEIGHTS
from prunegym.scripts.cli import run_verb


class Benchmark(NamedTuple):
    """What is measured, how, and how it is shown."""

    measure: Callable[[argparse.Namespace], dict[str, Any]]
    show: Callable[[dict[str, Any]], None]
    help: str
    flags: tuple[str, ...]  # that it heeds, of those that not all do


BENCHMARKS: Mapping[str, Benchmark] = {
    "env": Benchmark(
        environment.measure,
        environment.show,
        "steps and episodes per second, and where the time goes",
        ("assets", "networks", "episodes", "seed"),
    ),
    "data-free": Benchmark(
        data_free.measure,
        data_free.show,
        "accuracy and seconds of every compensation and calibration",
        ("assets", "networks", "out"),
    ),
    "runtime": Benchmark(
        runtime.measure,
        runtime.show,
        "latency and accuracy of runtime pruning beside static pruning",
        ("assets", "networks", "seed", "out"),
    ),
    "per-input": Benchmark(
        per_input.measure,
        per_input.show,
        "static, fixed and per-input ratios at equal multiply-adds, on average",
        ("assets", "networks", "episodes", "out"),
    ),
    "search": Benchmark(
        search.measure,
        search.show,
        "every agent and search with equal evaluations",
        ("assets", "networks", "episodes", "out"),
    ),
    "transfer": Benchmark(
        transfer.measure,
        transfer.show,
        "policies learned on one network, reused on another",
        ("assets", "episodes", "out"),
    ),
    "coverage": Benchmark(
        coverage.measure,
        coverage.show,
        "which networks of torchvision and timm can be pruned, and whether rightly",
        ("networks", "seed", "out", "table"),
    ),
    "reward": Benchmark(
        reward.measure,
        reward.show,
        "rank correlation of rewards without labels with true accuracy",
        ("assets", "networks", "episodes", "seed"),
    ),
}


def build_parser() -> options.Parser:
    """Return the parser of this verb."""
    parser = options.Parser("benchmark", __doc__ or "")
    names = "; ".join(f"{name}: {one.help}" for name, one in BENCHMARKS.items())
    parser.add_argument("name", choices=list(BENCHMARKS), help=names)
    parser.add_argument(
        "--assets",
        type=Path,
        default=Path(os.environ["PRUNEGYM_DATA"]) if os.environ.get("PRUNEGYM_DATA") else None,
        metavar="DIR",
        help="holds cifar10/cifar10_subset.npz and weights/*.th, see the README (default $PRUNEGYM_DATA)",
    )
    parser.add_argument(
        "--networks", nargs="+", choices=list(WEIGHTS), metavar="NAME", help="instead of the benchmark's own"
    )
    parser.add_argument(
        "--episodes",
        type=options.positive,
        default=None,
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
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto (default), cpu, cuda, ...")
    parser.add_argument("--seed", type=int, metavar="N", help="of all that is drawn (0)")
    options.add_output_flags(parser, out=False)
    return parser


def run(argv: Sequence[str]) -> None:
    """Carry the verb out."""
    args = build_parser().parse(argv)
    benchmark = BENCHMARKS[args.name]
    for flag in ("networks", "episodes", "seed", "out", "table"):
        if getattr(args, flag) is not None and flag not in benchmark.flags:
            takers = ", ".join(name for name, one in BENCHMARKS.items() if flag in one.flags)
            raise options.UsageError(f"--{flag} goes with {takers}; leave it out with {args.name}")
    if "assets" in benchmark.flags:
        if args.assets is None:
            raise options.UsageError(
                "name the folder of images and weights with --assets, or set PRUNEGYM_DATA to it "
                "(the README says where to get them)"
            )
        if not args.assets.is_dir():
            raise options.UsageError(
                f"there is no folder {args.assets}; name it with --assets, or set PRUNEGYM_DATA to it "
                "(the README says where to get its files)"
            )
    args.seed = args.seed or 0
    record = benchmark.measure(args)
    if args.json:
        print(json.dumps(record, indent=2))
    else:
        benchmark.show(record)


if __name__ == "__main__":
    sys.exit(run_verb("benchmark"))
