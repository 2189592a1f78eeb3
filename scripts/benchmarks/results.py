"""The file in which a long benchmark keeps its results, and its jobs in several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from prunegym.pruning.files.plain_data import read_json, write_json
from prunegym.scripts.options.benchmark import BenchmarkConfig
from prunegym.scripts.options.parser import UsageError

T = TypeVar("T")
KEYS = ("settings", "results")  # of the file


@dataclass(frozen=True)
class Record:
    """The results of a benchmark so far, and the file that keeps them, if there is one."""

    path: Path | None
    settings: Mapping[str, Any]  # plain data; what was measured by others does not belong here
    results: dict[str, Any]

    def keep(self) -> None:
        """Write the file."""
        if self.path is not None:
            write_json(self.path, {"settings": dict(self.settings), "results": self.results})


def begun(config: BenchmarkConfig, **settings: Any) -> Record:
    """Return what the file `--out` holds so far; nothing where there is none.

    Args:
        config: the flags of `benchmark`.
        settings: plain data that the results depend on, beside the benchmark's name.

    Raises:
        UsageError: the file holds something else, or results of other settings.
    """
    settings = {"benchmark": config.name, **settings}
    if config.out is None or not config.out.exists():
        return Record(config.out, settings, {})
    try:
        found = read_json(config.out)
    except (OSError, ValueError) as error:
        raise UsageError(f"{config.out} holds no results ({error}); give another --out") from error
    if not isinstance(found, dict) or not all(isinstance(found.get(key), dict) for key in KEYS):
        raise UsageError(f"{config.out} holds no results of a benchmark; give another --out")
    if found["settings"] != settings:
        there, here = (
            ", ".join(f"{name} {value}" for name, value in some.items())
            for some in (found["settings"], settings)
        )
        raise UsageError(f"{config.out} holds results of {there}, not of {here}; give another --out")
    return Record(config.out, settings, found["results"])


def run_side_by_side(
    record: Record, jobs: Sequence[tuple[str, ...]], run: Callable[..., Any], *, progress: bool
) -> dict[str, Any]:
    """Return the results of all jobs, earlier ones included, one process per core; each is kept at once.

    Ctrl-C, or a job that fails, ends all processes at once.

    Args:
        record: earlier results, nested by the parts of a job's name; a job that it holds is not run again.
        jobs: their names.
        run: called with the parts of a job's name, returns its result; each process uses one thread.
        progress: show a bar.
    """
    missing = [job for job in jobs if _found(record.results, job) is None]
    for (*path, last), result in each_result(missing, run, processes=available_cores(), progress=progress):
        place = record.results
        for part in path:
            place = place.setdefault(part, {})
        place[last] = result
        record.keep()
    return record.results


def each_result(
    jobs: Sequence[tuple[str, ...]], run: Callable[..., Any], *, processes: int, progress: bool
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (job, its result) as jobs end; Ctrl-C, or a job that fails, ends all processes at once.

    Args:
        jobs: their names.
        run: called with the parts of a job's name, returns its result; each process uses one thread.
        processes: the number of jobs that run at a time.
        progress: show a bar.
    """
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, mp_context=fork, initializer=_start, initargs=(run,)) as pool:
        futures = {pool.submit(_call, job): job for job in jobs}
        try:
            done = as_completed(futures)
            for future in progress_bar(done, shown=progress, total=len(futures), unit="run"):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()  # it has minutes of work in hand
            raise


def progress_bar(items: Iterable[T], *, shown: bool, **settings: Any) -> Iterable[T]:
    """Return items that move a bar on standard error, where that is a terminal; `settings` are tqdm's."""
    return tqdm(items, disable=not (shown and sys.stderr.isatty()), **settings)


def available_cores() -> int:
    """Return how many cores this process may use: fewer than there are, where it is held to some."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _found(results: dict[str, Any], job: tuple[str, ...]) -> Any:
    place: Any = results
    for part in job:
        place = place.get(part) if place is not None else None
    return place


_run: Callable[..., Any]  # of this process; a fork inherits it, where a pool could not pickle it


def _start(run: Callable[..., Any]) -> None:
    global _run
    _run = run
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the process that waits
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _call(job: tuple[str, ...]) -> Any:
    return _run(*job)
