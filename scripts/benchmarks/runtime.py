"""Runtime pruning: what it saves on a clock, and what it costs in accuracy, beside static pruning."""

from __future__ import annotations

from typing import Any

from prunegym.scripts.benchmarks import runtime_accuracy, runtime_latency
from prunegym.scripts.benchmarks.results import begun
from prunegym.scripts.options.benchmark import BenchmarkConfig

PARTS = {"latency": runtime_latency, "accuracy": runtime_accuracy}


def measure(config: BenchmarkConfig) -> dict[str, Any]:
    """Return the record of each part by network."""
    record = begun(config, seed=config.seed)
    for name, part in PARTS.items():
        part.measure(config, record.results.setdefault(name, {}), record)
    return record.results


def show(record: dict[str, Any]) -> None:
    """Print the tables of both parts."""
    for name, part in PARTS.items():
        part.show(record[name])
