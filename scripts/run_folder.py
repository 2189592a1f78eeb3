"""Folders for results: who may write into one, what it holds, and the configuration of its run."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from prunegym.envs import DataSource, Task
from prunegym.pruning.data import absolute
from prunegym.pruning.evaluation.evaluate import Evaluation
from prunegym.pruning.files import cache_folder, read_json, write_json
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.storage.compressed import Manifest
from prunegym.scripts.options.output import OutputConfig
from prunegym.scripts.options.parser import UsageError

CONFIG, METRICS = "config.json", "metrics.json"
UPDATES, INPUTS = "updates.jsonl", "inputs.npz"  # of a run that learns to decide for each input
# flags that may differ between a run and its resumption
MAY_DIFFER = ("out", "resume", "overwrite", "json", "quiet", "device", "download", "cluster")


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Lock a folder for results against other processes of this user.

    The lock is on one byte of a file in the cache, chosen by the folder's path. It ends with this process,
    however that ends, and forks do not inherit it, so that forks that are still at work do not prevent a
    resumption. Where the cache cannot be written or takes no locks, there is no protection.

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


def check_out(output: OutputConfig, *, may_differ: Collection[str] = ()) -> None:
    """Refuse a folder that holds something else than the run to begin or to resume, before any work.

    Args:
        output: the folder for results, and the flags of the run.
        may_differ: flags that a resumption may change, beside MAY_DIFFER.

    Raises:
        UsageError: it holds a run and neither flag is given, or another run than these flags describe, or no
            run; or both flags are given.
    """
    out = output.folder
    if not output.resume:
        check_empty(out, overwrite=output.overwrite, way_out="--resume or --overwrite")
        return
    if output.overwrite:
        raise UsageError("--resume goes on with a run and --overwrite replaces it; give one of them")
    try:
        earlier = read_json(out / CONFIG)
    except (OSError, ValueError) as error:
        raise UsageError(f"{out} holds no run to resume ({error}); leave out --resume") from error
    if not isinstance(earlier, dict):
        raise UsageError(f"{out / CONFIG} is damaged; give another --out, or --overwrite")
    now = run_config(output)
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


def run_config(output: OutputConfig) -> dict[str, Any]:
    """Return the flags that make a run what it is, as plain data."""
    return {name: value for name, value in output.flags.items() if name not in MAY_DIFFER}


def begin_run(output: OutputConfig) -> None:
    """Begin a run's folder; one to be resumed stays as it is, since its checkpoint may prove damaged."""
    if not output.resume:
        open_run(output.folder, run_config(output), overwrite=output.overwrite)


def continue_run(output: OutputConfig) -> None:
    """Write the configuration of a run that was resumed, once nothing can be refused any more."""
    if output.resume:
        open_run(output.folder, run_config(output), overwrite=False)


def open_run(out: Path, config: Mapping[str, Any], *, overwrite: bool) -> None:
    """Begin a run's folder: remove the run it replaces, and write its configuration."""
    if overwrite and out.exists():
        shutil.rmtree(out)
    write_json(out / CONFIG, {**config, "command": shlex.join(sys.argv)})


def manifest_of(task: Task, data: DataSource, plan: CompressionPlan, evaluation: Evaluation) -> Manifest:
    """Return what a compressed network's folder says of where it came from."""
    network = task.network
    return Manifest(
        network=network.name,
        input_shape=network.input_shape,
        mean=network.mean,
        std=network.std,
        data=absolute(data.eval_data or data.spec),
        plan=plan,
        evaluation=evaluation,
    )
