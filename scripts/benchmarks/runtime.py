"""Runtime pruning: what it saves on a clock, and what it costs in accuracy, beside static pruning."""

from __future__ import annotations

import argparse
from typing import Any

from prunegym.scripts.benchmarks import runtime_accuracy, runtime_latency
from prunegym.scripts.benchmarks.results import begun

PARTS = {"latency": runtime_latency, "accuracy": runtime_accuracy}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return the record of each part by network."""
    record = begun(args, seed=args.seed)
    for name, part in PARTS.items():
        part.measure(args, record.results.setdefault(name, {}), record)
    return record.results


def show(record: dict[str, Any]) -> None:
    """Print the tables of both parts."""
    for name, part in PARTS.items():
        part.show(record[name])
