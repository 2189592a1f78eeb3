"""Which networks can be pruned, and whether it is right: every torchvision classifier and timm's families."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from functools import partial
from typing import Any

from prunegym.pruning.errors import PruningError
from prunegym.scripts.benchmarks.coverage_checks import check_prunegym, check_torch_pruning, torch_pruning
from prunegym.scripts.benchmarks.coverage_networks import networks
from prunegym.scripts.benchmarks.coverage_table import summary, write_table
from prunegym.scripts.benchmarks.limited import Limits, run_limited
from prunegym.scripts.benchmarks.results import available_cores, begun, progress_bar
from prunegym.scripts.options.benchmark import BenchmarkConfig
from prunegym.scripts.tables import print_note

LIMITS = Limits(seconds=200, gigabytes=12)
CHECKS = {"prunegym": check_prunegym, "torch-pruning": check_torch_pruning}
VERSIONS = ("torch", "torchvision", "timm", "torch-pruning")


def measure(config: BenchmarkConfig) -> dict[str, Any]:
    """Return the kind of each network and the checks of each pruner on it; results are kept as they come."""
    kept = begun(config, seed=config.seed)
    record = kept.results
    for part in ("kinds", *CHECKS):
        record.setdefault(part, {})
    record["seed"] = config.seed
    record["versions"] = {}
    for package in VERSIONS:
        try:
            record["versions"][package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            record["versions"][package] = None
    record["kinds"] |= {name: kind for name, kind in networks() if name in (config.networks or [name])}
    jobs = {
        (pruner, name): partial(check, name, seed=config.seed)
        for name in record["kinds"]
        for pruner, check in CHECKS.items()
        if name not in record[pruner] and (pruner == "prunegym" or can_compare())
    }
    runs = run_limited(jobs, LIMITS, side_by_side=available_cores())
    for (pruner, name), result in progress_bar(runs, shown=config.progress, total=len(jobs), unit="run"):
        record[pruner][name] = result
        kept.keep()
    if config.table is not None:
        write_table(config.table, record)
    return record


def can_compare() -> bool:
    """Return whether Torch-Pruning is installed."""
    try:
        torch_pruning()
    except PruningError:
        return False
    return True


def show(record: Mapping[str, Any]) -> None:
    """Print how many networks of each kind passed, and why the others did not."""
    for line in summary(record):
        print_note(line)
    for name, found in record["prunegym"].items():
        if "failed" in found:
            print_note(f"{name}: {found['failed']}")
    try:
        torch_pruning()
    except PruningError as error:
        print_note(f"Torch-Pruning was not measured: {error}")
