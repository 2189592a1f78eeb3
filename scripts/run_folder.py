"""Folders for results: who may write into one, what it holds, and the configuration of its run."""

from __future__ import annotations

import fcntl
import logging
import os
import shlex
import stat
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prunegym.envs import DataSource, Task
from prunegym.pruning.data import absolute
from prunegym.pruning.evaluation.evaluate import Evaluation
from prunegym.pruning.files.plain_data import read_json, write_json
from prunegym.pruning.files.writing import is_temporary, remove, remove_abandoned
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.storage.compressed import Manifest
from prunegym.scripts.options.output import OutputConfig
from prunegym.scripts.options.parser import UsageError

logger = logging.getLogger(__name__)

CONFIG, METRICS = "config.json", "metrics.json"
UPDATES, INPUTS = "updates.jsonl", "inputs.npz"  # of a run that learns to decide for each input
WRITTEN = {  # by a run, beside its configuration
    *(METRICS, UPDATES, INPUTS, "plan.json", "episodes.jsonl", "report.html"),
    *("checkpoint", "compressed", "pictures", "policy", "tensorboard"),
}
# flags that may differ between a run and its resumption
MAY_DIFFER = ("out", "resume", "overwrite", "json", "quiet", "device", "download", "cluster")


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Make a folder for results, and lock it against other processes; afterwards it must hold a run.

    Temporary files of processes that died in it are removed. The lock is on the folder itself; it ends with
    this process, however that ends, and forks do not keep it. Where the file system takes no locks there is
    no protection. If the block ends with an error, an empty folder that was made for it is removed.

    Raises:
        UsageError: the folder cannot be made or written, a process works there already, or after the block
            the run is not there any more.
    """
    place = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise UsageError(f"cannot write into {place}; give another --out")
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(out):
            remove_abandoned(out)
            yield
    finally:
        with suppress(OSError):  # it is not empty
            for folder in missing:
                folder.rmdir()
    if not (out / CONFIG).is_file():
        raise UsageError(
            f"{out} was removed while the run wrote into it; run it again, or give another --out"
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = os.open(folder, os.O_RDONLY)
    _LOCKS.add(lock)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"another process is at work in {folder}; wait for it, end it, or give another --out"
            ) from error
        except OSError:
            pass
        yield
    finally:
        _LOCKS.discard(lock)
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_UN)  # a fork that was begun just now has a copy of it
        os.close(lock)


def _close_locks() -> None:
    """Give up the parent's locks in a fork, so that a fork that is still at work prevents no resumption."""
    for lock in _LOCKS:
        os.close(lock)
    _LOCKS.clear()


_LOCKS: set[int] = set()  # open files
os.register_at_fork(after_in_child=_close_locks)


def check_empty(out: Path, *, overwrite: bool, way_out: str = "--overwrite") -> None:
    """Refuse a folder for results that holds something already, before any work.

    Raises:
        UsageError: it holds a run and `overwrite` is not given, or it holds something else.
    """
    if not out.exists() or _is_empty(out):
        return
    if not (out / CONFIG).is_file() and not _is_rest(out):
        raise UsageError(f"{out} is not the folder of a run and is left alone; give another --out")
    if not overwrite:
        raise UsageError(f"{out} already holds a run; give another --out, or {way_out}")


def check_files(folder: Path) -> None:
    """Refuse a run's folder in which a link or a device would lead what is written somewhere else.

    Raises:
        UsageError: there is something below it that is neither a file nor a folder.
    """
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            mode = Path(place, name).lstat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise UsageError(
                    f"{Path(place, name)} is a link or a device, and writing there could change "
                    "something else; remove it"
                )


def _is_rest(folder: Path) -> bool:
    """Return whether a folder holds what a run wrote and nothing else, though its configuration is gone."""
    names = {entry.name for entry in folder.iterdir()}
    return names <= WRITTEN and bool(names & {METRICS, "checkpoint", "compressed", "tensorboard"})


def _is_empty(folder: Path) -> bool:
    return not any(not is_temporary(entry) for entry in folder.iterdir())


def check_out(output: OutputConfig, *, may_differ: Collection[str] = ()) -> None:
    """Refuse a folder that holds something else than the run to begin or to resume, before any work.

    Args:
        output: the folder for results, and the flags of the run.
        may_differ: flags that a resumption may change, beside MAY_DIFFER.

    Raises:
        UsageError: it holds a run and neither flag is given, or another run than these flags describe, or no
            run, or a link; or both flags are given.
    """
    out = output.folder
    if not output.resume:
        check_empty(out, overwrite=output.overwrite, way_out="--resume or --overwrite")
        return
    if output.overwrite:
        raise UsageError("--resume goes on with a run and --overwrite replaces it; give one of them")
    if not out.exists() or _is_empty(out):
        logger.warning("%s holds no run yet; one begins", out)
        return
    check_files(out)
    try:
        earlier = read_json(out / CONFIG)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{out} holds no run to resume ({error}); give another --out, or --overwrite"
        ) from error
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
    if not output.resume or not (output.folder / CONFIG).exists():
        open_run(output.folder, run_config(output), overwrite=output.overwrite)


def continue_run(output: OutputConfig) -> None:
    """Write the configuration of a run that was resumed, once nothing can be refused any more."""
    if output.resume:
        open_run(output.folder, run_config(output), overwrite=False)


def open_run(out: Path, config: Mapping[str, Any], *, overwrite: bool) -> None:
    """Begin a run's folder: remove the run it replaces, and write its configuration."""
    for entry in out.iterdir() if overwrite else ():
        if entry.name != CONFIG:  # by which it is known as a run's, should this process die meanwhile
            remove(entry)
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
