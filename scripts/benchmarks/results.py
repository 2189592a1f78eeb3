"""The file in which a long benchmark keeps what it has measured."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from pruning.files import read_json, write_json
from scripts.options import UsageError

RESAMPLES = 10_000


def begun(path: Path | None, *, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return what a file of results holds so far; nothing where there is none.

    Args:
        path: of the file, or None.
        fits: whether a record is one of this benchmark's.

    Raises:
        UsageError: the file holds something else.
    """
    if path is None or not path.exists():
        return {}
    try:
        record = read_json(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} holds no results ({error}); give another --out") from error
    if not isinstance(record, dict) or not fits(record):
        raise UsageError(f"{path} holds no results of this benchmark; give another --out")
    return record


def run_side_by_side(
    record: dict[str, Any],
    jobs: Sequence[tuple[str, ...]],
    run: Callable[..., Any],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Return the record with the results of all jobs, one process per core; it is written after each.

    What ends it early, Ctrl-C or a job that fails, ends all its processes at once.

    Args:
        record: of earlier results, nested by the parts of a job's name; a job that it holds is not run again.
        jobs: names.
        run: what does a job, given the parts of its name; each process uses one thread.
        args: `out` is the file of the record, or None.
    """
    missing = [job for job in jobs if _found(record, job) is None]
    fork = multiprocessing.get_context("fork")
    shown = not args.quiet and sys.stderr.isatty()
    with ProcessPoolExecutor(available_cores(), mp_context=fork, initializer=_start, initargs=(run,)) as pool:
        futures = {pool.submit(_call, job): job for job in missing}
        try:
            for future in tqdm(as_completed(futures), total=len(futures), unit="run", disable=not shown):
                _file(record, futures[future], future.result())
                if args.out is not None:
                    write_json(args.out, record)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()  # it has minutes of work in hand
            raise
    return record


def available_cores() -> int:
    """Return how many cores this process may use: fewer than there are, where it is held to some."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _file(record: dict[str, Any], job: tuple[str, ...], result: Any) -> None:
    *path, last = job
    for part in path:
        record = record.setdefault(part, {})
    record[last] = result


def _found(record: dict[str, Any], job: tuple[str, ...]) -> Any:
    place: Any = record
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


def interval(one: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a difference of mean accuracies, paired by seed and image.

    Args:
        one: whether each image was right, [seeds, images].
        other: likewise, of the same seeds and images.
    """
    rng = np.random.default_rng(0)
    difference = one - other
    seeds, images = difference.shape
    means = [
        difference[rng.integers(seeds, size=seeds)][:, rng.integers(images, size=images)].mean()
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
