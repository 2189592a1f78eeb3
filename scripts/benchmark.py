"""Measure this installation on pretrained CIFAR-10 ResNets: one benchmark per name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from prunegym.scripts.benchmarks import (
    coverage,
    data_free,
    depth,
    environment,
    per_input,
    reward,
    runtime,
    search,
    transfer,
)
from prunegym.scripts.benchmarks.assets import WEIGHTS
from prunegym.scripts.benchmarks.faults import campaign as faults
from prunegym.scripts.cli import run_verb
from prunegym.scripts.options.benchmark import BenchmarkConfig, parse
from prunegym.scripts.tables import print_json


class Benchmark(NamedTuple):
    """A benchmark: functions that measure and show it, its help, and the flags it heeds."""

    measure: Callable[[BenchmarkConfig], dict[str, Any]]
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
    "depth": Benchmark(
        depth.measure,
        depth.show,
        "whole residual blocks removed, beside widths at the same multiply-adds",
        ("assets", "networks", "seed"),
    ),
    "reward": Benchmark(
        reward.measure,
        reward.show,
        "rank correlation of rewards without labels with true accuracy",
        ("assets", "networks", "episodes", "seed"),
    ),
    "faults": Benchmark(
        faults.measure,
        faults.show,
        "attacks on the commands themselves: kills, faults of the machine, bad input, changed records",
        ("seed", "out", "table", "share", "only"),
    ),
}


def run(argv: Sequence[str]) -> None:
    """Run the verb with its command line."""
    config = parse(argv, BENCHMARKS, networks=WEIGHTS)
    benchmark = BENCHMARKS[config.name]
    record = benchmark.measure(config)
    if config.as_json:
        print_json(record)
    else:
        benchmark.show(record)


if __name__ == "__main__":
    sys.exit(run_verb("benchmark"))
