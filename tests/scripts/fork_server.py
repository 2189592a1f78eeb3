"""Processes that tests may kill: forks of a server of their own, which has imported what they run.

multiprocessing's server dies of a failed `fork`, as where memory is short, and of Ctrl-C while it still
imports; whoever has just asked it for a process then sees an `EOFError`. So it is out of reach of the signals
that pytest's processes get, and one that died is replaced.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [__name__, "prunegym.scripts.train", "torch._dynamo", "tests.scripts.killing"]  # seconds each
)
ROOT = Path(__file__).parents[2]
STARTING = "PRUNEGYM_TESTS_START_THE_FORK_SERVER"
ATTEMPTS = 6

if os.environ.pop(STARTING, None):  # this process becomes the server
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def start(target: Callable[..., None], *args: Any) -> ForkServerProcess:
    """Call a function in a process of its own, in this process's working folder and environment."""
    for attempt in range(ATTEMPTS):
        process = CONTEXT.Process(target=_called, args=(target, args, os.getcwd(), dict(os.environ)))
        try:
            _ensure_server()
            process.start()
            return process
        except (EOFError, ConnectionError, FileNotFoundError):  # it died, or is about to be replaced
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(0.1 * 2**attempt)  # until the system has noted its end
    raise AssertionError("not reached")


def _ensure_server() -> None:
    folder = os.getcwd()
    os.environ[STARTING] = "1"
    os.chdir(ROOT)  # a server looks for what it preloads there, and not along sys.path
    try:
        forkserver.ensure_running()
    finally:
        os.chdir(folder)
        del os.environ[STARTING]


def _called(
    target: Callable[..., None], args: tuple[Any, ...], folder: str, environment: Mapping[str, str]
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    target(*args)
