"""What verbs write down, and show as a table."""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from prunegym.envs import Task
from prunegym.pruning.data import absolute
from prunegym.pruning.evaluation.evaluate import Evaluation
from prunegym.pruning.files import cache_folder, read_json, write_json
from prunegym.pruning.plan import PruningPlan
from prunegym.pruning.storage.compressed import Manifest
from prunegym.scripts.options import UsageError, plain

CONFIG, METRICS, EPISODES = "config.json", "metrics.json", "episodes.jsonl"
UPDATES, INPUTS = "updates.jsonl", "inputs.npz"  # of a run that learns to decide for each input
# between a run and its resumption
MAY_DIFFER = ("out", "resume", "overwrite", "json", "quiet", "device", "download", "cluster")

COLUMNS = {
    "accuracy": ("accuracy", lambda value: f"{value:.2%}"),
    "agreement": ("agreement", lambda value: f"{value:.2%}"),
    "score": ("score", lambda value: f"{value + 0.0:.5g}"),  # no -0
    "macs": ("MACs", lambda value: f"{value / 1e6:.3f} M"),
    "params": ("parameters", lambda value: f"{value:,}"),
    "bytes": ("bytes", lambda value: f"{value:,}"),
    "latency_ms": ("latency", lambda value: f"{value:.2f} ms"),
    "onnx_bytes": ("ONNX bytes", lambda value: f"{value:,}"),
    "pt2_bytes": ("pt2 bytes", lambda value: f"{value:,}"),
    "eager_ms": ("eager", lambda value: f"{value:.2f} ms"),
    "onnx_ms": ("onnxruntime", lambda value: f"{value:.2f} ms"),
    "pt2_ms": ("torch.export", lambda value: f"{value:.2f} ms"),
}


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Keep this user's other processes from working in a folder for results at the same time.

    One byte of a file in the cache stands for the folder. Its lock ends with this process, however that ends,
    and is not its forks', so that what they still do hinders no resumption. Where the cache cannot be written
    or takes no locks, nothing is kept apart.

    Raises:
        UsageError: a process works there already.
    """
    byte = int.from_bytes(hashlib.sha256(os.fsencode(out.resolve())).digest()[:7], "big")
    with ExitStack() as stack:
        try:
            cache_folder().mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((cache_folder() / "in-use").open("ab"))
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except BlockingIOError as error:
            raise UsageError(
                f"another process is at work in {out}; wait for it, end it, or give another --out"
            ) from error
        except OSError:
            pass
        yield


def check_empty(out: Path, *, overwrite: bool, way_out: str = "--overwrite") -> None:
    """Refuse a folder for results that holds something already, before any work.

    Raises:
        UsageError: it holds a run and `overwrite` is not given, or it holds something else, or it cannot be
            made.
    """
    place = next(folder for folder in (out, *out.resolve().parents) if folder.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise UsageError(f"cannot write into {place}; give another --out")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / CONFIG).is_file():
        raise UsageError(f"{out} is not the folder of a run and is left alone; give another --out")
    if not overwrite:
        raise UsageError(f"{out} already holds a run; give another --out, or {way_out}")


def check_out(out: Path, args: argparse.Namespace, *, may_differ: Collection[str] = ()) -> None:
    """Refuse a folder that holds something else than the run to begin or to resume, before any work.

    Args:
        out: the folder for results.
        args: the flags, --resume and --overwrite among them.
        may_differ: flags that a resumption may change, beside MAY_DIFFER.

    Raises:
        UsageError: it holds a run and neither flag is given, or another run than these flags describe, or no
            run; or both flags are given.
    """
    if not args.resume:
        check_empty(out, overwrite=args.overwrite, way_out="--resume or --overwrite")
        return
    if args.overwrite:
        raise UsageError("--resume goes on with a run and --overwrite replaces it; give one of them")
    try:
        earlier = read_json(out / CONFIG)
    except (OSError, ValueError) as error:
        raise UsageError(f"{out} holds no run to resume ({error}); leave out --resume") from error
    if not isinstance(earlier, dict):
        raise UsageError(f"{out / CONFIG} is damaged; give another --out, or --overwrite")
    now = run_config(args)
    changed = [name for name in now if earlier.get(name) != now[name] and name not in may_differ]
    if changed:
        raise UsageError(
            f"{out} was begun with another {' and '.join(changed)}; repeat its flags, or use --overwrite"
        )


def check_source(source: Path, out: Path) -> None:
    """Refuse to overwrite what a run is to be made from.

    Raises:
        UsageError: `source` lies in `out`, the folder for results.
    """
    if out.resolve() in source.resolve().parents:
        raise UsageError(f"--overwrite would remove {source}, which lies in {out}; give another --out")


def run_config(args: argparse.Namespace) -> dict[str, Any]:
    """Return the flags that make a run what it is, as plain data."""
    return plain(args, without=MAY_DIFFER)


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
        data=absolute(args.eval_data or args.data),
        plan=plan,
        evaluation=evaluation,
    )


def show(record: Mapping[str, Any], title: str, *, as_json: bool) -> None:
    """Print a record of `rows`, `gated_groups` and, perhaps, a `verdict`: as a table, or as JSON."""
    if as_json:
        print(json.dumps(record, indent=2))
        return
    show_rows(title, record["rows"], gated=record["gated_groups"])
    if "latency" in record:
        shares = record["latency"]
        print(
            f"latency: {shares['predicted']:.1%} of the dense network's predicted, {shares['measured']:.1%} "
            f"measured (the table's worst error: {shares['worst_error']:.1%})"
        )
    if "verdict" in record:
        print(record["verdict"])


def gated_note(gated: Mapping[str, int]) -> str:
    """Say what a star beside a row means, from how many groups of each row skip units."""
    names = ", ".join(f"{name} ({count} group{'s' * (count > 1)})" for name, count in gated.items() if count)
    return f"{names}: for each input, units are skipped; latency with only the others run"


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
        console().print(f"* {gated_note(gated)}")


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
