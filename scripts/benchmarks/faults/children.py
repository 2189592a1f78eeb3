"""Commands of this tool, each in a process of its own: a fork of one that has imported everything."""

from __future__ import annotations

import ctypes
import importlib
import io
import logging
import os
import resource
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import prunegym.agents.per_input.ppo
from prunegym.pruning.latency import timing
from prunegym.scripts.cli import VERBS, main

LONGEST = 120.0  # seconds that a command may take; it takes one to five
GRACE = 20.0  # seconds within which its own processes must have ended after it
LARGEST_FILE, MORE_MEMORY = 2**28, 3 * 2**30  # bytes
PR_SET_PDEATHSIG = 1  # of Linux: the campaign's end is that of its commands
# what commands import only when they need it
LATE = ("matplotlib.font_manager", "torch._dynamo", "torch.onnx", "torch.export", "onnx", "onnxruntime",
        "onnxscript", "cma", "cloudpickle")  # fmt: skip


@dataclass(frozen=True)
class Place:
    """The folders of one case."""

    root: Path

    @property
    def work(self) -> Path:
        """Where the command is run: deep in the case's folder, so that `../../x` stays in it."""
        return self.root / "some" / "where" / "work"

    @property
    def out(self) -> Path:
        """The folder for results."""
        return self.work / "out"

    @property
    def cache(self) -> Path:
        """The cache of the tool."""
        return self.root / "cache"

    @property
    def outside(self) -> Path:
        """A folder that no command may touch."""
        return self.root / "outside"

    @property
    def ran(self) -> Path:
        """What foreign code would make if it were run."""
        return self.root / "ran"

    def prepared(self) -> Place:
        """Make the folders."""
        for folder in (self.work, self.root / "home", self.cache, self.outside):
            folder.mkdir(parents=True, exist_ok=True)
        (self.outside / "precious").write_text("not yours\n", encoding="utf-8")
        return self


@dataclass(frozen=True)
class Ended:
    """What a command did."""

    code: int  # negative: the signal that ended it
    out: str
    err: str
    seconds: float
    hung: bool  # it was killed as it took too long
    lingering: bool  # a process of its own outlived it


def import_everything() -> None:
    """Import what commands do, so that forks need not."""
    for verb in VERBS:
        importlib.import_module(f"prunegym.scripts.{verb.replace('-', '_')}")
    for name in LATE:
        with suppress(ImportError):
            importlib.import_module(name)


class Running:
    """A command at work in a process of its own.

    Args:
        place: its folders.
        argv: the verb and its flags.
        prepare: called in the process before the verb is run.
    """

    def __init__(self, place: Place, argv: Sequence[str], prepare: Callable[[], Any] | None = None) -> None:
        self._place, self._begun = place, time.monotonic()
        self._alive, held = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._alive)
            _become(place, argv, prepare)
        os.close(held)
        self._watch = os.pidfd_open(self.pid)

    def ended_within(self, seconds: float) -> bool:
        """Wait for its end for so long, and return whether it came."""
        return bool(select.select([self._watch], [], [], max(0.0, seconds))[0])

    def send(self, number: int) -> None:
        """Send a signal to the command, not to processes of its own."""
        os.kill(self.pid, number)

    def end(self, seconds: float = LONGEST) -> Ended:
        """Wait until it has ended; kill it, and all that it started, when it takes too long."""
        hung = not self.ended_within(seconds - (time.monotonic() - self._begun))
        if hung:
            self._kill_all()
        _, status = os.waitpid(self.pid, 0)
        lasted = time.monotonic() - self._begun
        lingering = not hung and not select.select([self._alive], [], [], GRACE)[0]
        self._kill_all()
        os.close(self._watch)
        os.close(self._alive)
        out, err = (_tail(self._place.root / name) for name in ("stdout", "stderr"))
        return Ended(os.waitstatus_to_exitcode(status), out, err, lasted, hung, lingering)

    def _kill_all(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


def run(place: Place, argv: Sequence[str], prepare: Callable[[], Any] | None = None) -> Ended:
    """Run a command to its end."""
    return Running(place, argv, prepare).end()


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 100_000))
        return file.read().decode(errors="backslashreplace")


def _become(place: Place, argv: Sequence[str], prepare: Callable[[], Any] | None) -> None:
    """Turn this fork into a process that runs a command, as a fresh interpreter would, and end it."""
    code = 1
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        _open_streams(place)
        _forget_the_parent(place, argv)
        _hasten()
        if prepare is not None:
            prepare()
        code = main([os.fsdecode(os.fsencode(word)) for word in argv])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(_flushed(code))


def _open_streams(place: Place) -> None:
    for stream, name in enumerate(("stdin", "stdout", "stderr")):
        handle = os.open(place.root / name, os.O_CREAT | os.O_RDWR | os.O_TRUNC)
        os.dup2(handle, stream)
        os.close(handle)
    sys.stdin = io.TextIOWrapper(io.FileIO(0, "r", closefd=False), encoding="utf-8")
    sys.stdout = sys.__stdout__ = _text(1, "strict")  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _text(2, "backslashreplace")  # type: ignore[misc]


def _text(stream: int, errors: str) -> io.TextIOWrapper:
    raw = io.BufferedWriter(io.FileIO(stream, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding="utf-8", errors=errors, line_buffering=stream == 2)


def _forget_the_parent(place: Place, argv: Sequence[str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG", "LC_ALL") if name in os.environ}
    os.environ.clear()
    home = {"HOME": str(place.root / "home"), "PRUNEGYM_CACHE": str(place.cache), "OMP_NUM_THREADS": "1"}
    os.environ.update(kept | home)
    os.chdir(place.work)
    sys.argv = ["prunegym", *argv]
    logging.getLogger().handlers.clear()
    warnings.resetwarnings()
    for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", kind)  # as Python does on its own
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    limit_memory(MORE_MEMORY)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_memory(more: int) -> None:
    """Let this process take so many bytes of address space beside those that it has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _hasten() -> None:
    """Use a briefer stopwatch, since no clock is compared, and write checkpoints of short runs, too."""

    def time_once(*args: Any, seconds: float, _time: Callable[..., float] = timing.time_once) -> float:
        return _time(*args, seconds=min(seconds, 0.002))

    mock.patch.object(timing, "time_once", time_once).start()
    mock.patch.object(prunegym.agents.per_input.ppo, "SAVE_EVERY", 1).start()


def _flushed(code: int) -> int:
    """Flush what was printed, as Python does when it ends; return the exit code."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            code = 120
            with suppress(OSError):
                os.write(2, f"Exception ignored on flushing sys.stdout: {error}\n".encode())
    return code
