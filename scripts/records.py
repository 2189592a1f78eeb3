"""What verbs write down, and show as a table."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from envs import Task
from pruning.evaluation import Evaluation
from pruning.export import Manifest
from pruning.files import write_json
from pruning.plan import PruningPlan
from scripts.options import UsageError

CONFIG, METRICS = "config.json", "metrics.json"

COLUMNS = {
    "accuracy": ("accuracy", lambda value: f"{value:.2%}"),
    "agreement": ("agreement", lambda value: f"{value:.2%}"),
    "macs": ("MACs", lambda value: f"{value / 1e6:.3f} M"),
    "params": ("parameters", lambda value: f"{value:,}"),
    "bytes": ("bytes", lambda value: f"{value:,}"),
    "latency_ms": ("latency", lambda value: f"{value:.2f} ms"),
}


def check_empty(out: Path, *, overwrite: bool, way_out: str = "--overwrite") -> None:
    """Refuse a folder for results that holds something already, before any work.

    Raises:
        UsageError: it holds a run and `overwrite` is not given, or it holds something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / CONFIG).is_file():
        raise UsageError(f"{out} is not the folder of a run and is left alone; give another --out")
    if not overwrite:
        raise UsageError(f"{out} already holds a run; give another --out, or {way_out}")


def open_run(out: Path, config: Mapping[str, Any], *, overwrite: bool) -> None:
    """Begin a run's folder: remove the run it replaces, and write its configuration."""
    if overwrite and out.exists():
        shutil.rmtree(out)
    write_json(out / CONFIG, {**config, "command": shlex.join(sys.argv)})


def manifest_of(task: Task, args: argparse.Namespace, plan: PruningPlan, evaluation: Evaluation) -> Manifest:
    """Return what a compressed network's folder says of where it came from."""
    network = task.network
    return Manifest(
        network=network.name,
        input_shape=network.input_shape,
        mean=network.mean,
        std=network.std,
        data=args.eval_data or args.data,
        plan=plan,
        evaluation=evaluation,
    )


def show(record: Mapping[str, Any], title: str, *, as_json: bool) -> None:
    """Print a record of `rows`, `gated_groups` and, perhaps, a `verdict`: as a table, or as JSON."""
    if as_json:
        print(json.dumps(record, indent=2))
        return
    show_rows(title, record["rows"], gated=record["gated_groups"])
    if "verdict" in record:
        print(record["verdict"])


def show_rows(title: str, rows: Mapping[str, Mapping[str, Any]], *, gated: Mapping[str, int]) -> None:
    """Print rows of metrics; the row "dense" is what the shares are of.

    Args:
        title: above the table.
        rows: name -> metrics, as in `metrics.json`.
        gated: rows with runtime gates -> how many groups they gate; marked, with a note below.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("")
    columns = [key for key in COLUMNS if any(row.get(key) is not None for row in rows.values())]
    for key in columns:
        table.add_column(COLUMNS[key][0], justify="right")
    for name, row in rows.items():
        mark = " *" if gated.get(name) else ""
        cells = (_cell(key, row.get(key), rows.get("dense", {}).get(key), mark) for key in columns)
        table.add_row(name, *cells)
    console().print(table)
    if any(gated.values()):
        names = ", ".join(f"{name} ({count} groups)" for name, count in gated.items() if count)
        console().print(
            f"* {names}: expected if skipped; gates are applied as masks, which do not save time yet"
        )


def console() -> Console:
    """Return standard output for tables, of a fixed width where it is no terminal."""
    return Console() if Console().is_terminal else Console(width=120)


def compressed_folder(path: Path) -> Path:
    """Return a compressed network's folder: `path/compressed` where `path` is a run's folder, else `path`."""
    return path / "compressed" if (path / "compressed").is_dir() else path


def _cell(key: str, value: Any, dense: Any, mark: str) -> str:
    if value is None:
        return "-"
    text = COLUMNS[key][1](value) + (mark if key == "macs" else "")
    return f"{text}  {value / dense:6.1%}" if dense else text
