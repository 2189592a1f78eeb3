"""Measure this installation on pretrained CIFAR-10 ResNets: one benchmark per name."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scripts import options
from scripts.benchmarks import coverage, data_free, environment, per_input, reward, runtime, search, transfer
from scripts.benchmarks.assets import WEIGHTS
from scripts.cli import run_verb


class Benchmark(NamedTuple):
    """What is measured, how, and how it is shown."""

    measure: Callable[[argparse.Namespace], dict[str, Any]]
    show: Callable[[dict[str, Any]], None]
    help: str
    resumes: bool = False  # from what `--out` holds


BENCHMARKS: Mapping[str, Benchmark] = {
    "env": Benchmark(
        environment.measure, environment.show, "steps and episodes per second, and where the time goes"
    ),
    "data-free": Benchmark(
        data_free.measure,
        data_free.show,
        "accuracy and seconds of every compensation and calibration",
        resumes=True,
    ),
    "runtime": Benchmark(
        runtime.measure,
        runtime.show,
        "latency and accuracy of runtime pruning beside static pruning",
        resumes=True,
    ),
    "per-input": Benchmark(
        per_input.measure,
        per_input.show,
        "static, fixed and per-input ratios at equal multiply-adds, on average",
        resumes=True,
    ),
    "search": Benchmark(
        search.measure,
        search.show,
        "every agent and search with equal evaluations",
        resumes=True,
    ),
    "transfer": Benchmark(
        transfer.measure, transfer.show, "policies learned on one network, reused on another", resumes=True
    ),
    "coverage": Benchmark(
        coverage.measure,
        coverage.show,
        "which networks of torchvision and timm can be pruned, and whether rightly",
        resumes=True,
    ),
    "reward": Benchmark(
        reward.measure, reward.show, "rank correlation of rewards without labels with true accuracy"
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
        default=Path(os.environ.get("SECATEUR_DATA", "../shared/data")),
        metavar="DIR",
        help="holds cifar10/cifar10_subset.npz and weights/*.th, see the README (default $SECATEUR_DATA)",
    )
    parser.add_argument(
        "--networks", nargs="+", choices=list(WEIGHTS), metavar="NAME", help="instead of the benchmark's own"
    )
    parser.add_argument(
        "--episodes",
        type=options.positive,
        default=None,
        metavar="N",
        help="env: 20, reward: 60 a network; search: 400; transfer: 1000 a policy; per-input: 25000 inputs",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="JSON file of results so far; what it holds is not measured again",
    )
    parser.add_argument("--table", type=Path, metavar="FILE.md", help="coverage: write the results there too")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto (default), cpu, cuda, ...")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    options.add_output_flags(parser, out=False)
    return parser


def run(argv: Sequence[str]) -> None:
    """Carry the verb out."""
    args = build_parser().parse(argv)
    if not args.assets.is_dir():
        raise options.UsageError(
            f"there is no folder {args.assets}; name it with --assets (the README says where from)"
        )
    benchmark = BENCHMARKS[args.name]
    if args.out is not None and not benchmark.resumes:
        names = " and ".join(name for name, one in BENCHMARKS.items() if one.resumes)
        raise options.UsageError(f"--out goes with {names}; {args.name} prints its results, see --json")
    if args.table is not None and args.name != "coverage":
        raise options.UsageError(f"--table goes with coverage; {args.name} prints its results")
    record = benchmark.measure(args)
    if args.json:
        print(json.dumps(record, indent=2))
    else:
        benchmark.show(record)


if __name__ == "__main__":
    sys.exit(run_verb("benchmark"))
