"""Run each job in a process with limits of time and memory, so that none can stop the others."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch

from prunegym.pruning.errors import PruningError, one_line
from prunegym.pruning.machine_failures import machine_failure

Name = TypeVar("Name", bound=Hashable)
SECONDS_PER_PROCESSOR_SECOND = 10  # seconds to wait for one of processor time
_FORK = multiprocessing.get_context("fork")  # what is imported already need not be imported again


@dataclass(frozen=True)
class Limits:
    """The processor time and memory that one job may use."""

    seconds: int  # of processor time, so that a busy machine does not fail it
    gigabytes: float  # of address space


@dataclass(frozen=True)
class _Running:
    process: Any
    answer: Connection
    deadline: float


def run_limited(
    jobs: Mapping[Name, Callable[[], dict[str, Any]]], limits: Limits, *, side_by_side: int
) -> Iterator[tuple[Name, dict[str, Any]]]:
    """Yield (name, result) of every job as they end; {"failed": why} for one that broke or hit a limit.

    Args:
        jobs: each is called in a process of its own, with one thread, and returns plain data.
        limits: what each job may use.
        side_by_side: the number of jobs that run at a time.
    """
    waiting = deque(jobs.items())
    running: dict[Name, _Running] = {}
    try:
        while waiting or running:
            while waiting and len(running) < side_by_side:
                name, job = waiting.popleft()
                answer, end = _FORK.Pipe(duplex=False)
                process = _FORK.Process(target=_call, args=(job, end, limits), daemon=True)
                process.start()
                end.close()  # so that the answer ends with the process, whatever ends it
                deadline = time.monotonic() + SECONDS_PER_PROCESSOR_SECOND * limits.seconds
                running[name] = _Running(process, answer, deadline)
            wait([job.answer for job in running.values()], timeout=1.0)
            for name, one in list(running.items()):
                result = _result(one, limits)
                if result is not None:
                    del running[name]
                    yield name, result
    finally:
        for one in running.values():
            one.process.kill()


def _result(one: _Running, limits: Limits) -> dict[str, Any] | None:
    if one.answer.poll():
        try:
            result: dict[str, Any] = one.answer.recv()
        except EOFError:
            one.process.join()
            why = f"its process ended with code {one.process.exitcode}"
            if one.process.exitcode == -signal.SIGXCPU:
                why = f"not done after {limits.seconds} s of processor time"
            result = {"failed": why}
        one.process.join()
        return result
    if time.monotonic() < one.deadline:
        return None
    one.process.kill()
    one.process.join()
    return {"failed": f"not done after {SECONDS_PER_PROCESSOR_SECOND * limits.seconds} s"}


def _call(job: Callable[[], dict[str, Any]], end: Connection, limits: Limits) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    torch.set_num_threads(1)
    most = int(limits.gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.seconds, limits.seconds + 1))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # what foreign code prints; results go through the pipe
        os.dup2(nowhere, stream)
    try:
        result = job()
    except Exception as error:
        why = one_line(error)
        if isinstance(machine_failure(error), MemoryError):
            why = f"needs more than {limits.gigabytes:.0f} GB"
        elif not isinstance(error, PruningError):
            why = f"{type(error).__name__}: {why}"
        result = {"failed": why}
    end.send(result)
