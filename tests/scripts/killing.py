"""Commands in processes of their own, to be killed."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

import prunegym.agents.per_input.ppo
import prunegym.scripts.train_per_input
from prunegym.agents import EpisodeLog, EpisodeResult
from prunegym.pruning.apply import Compressed
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.plan import CompressionPlan
from prunegym.scripts.cli import main
from tests.scripts import fork_server


class Running:
    """A command at work; what it prints goes to files in `folder`.

    With `hold`, (author, count), it waits when the author has written so many lines into its
    `episodes.jsonl`. With `slow_after`, every evaluation takes ten minutes once there are so many lines;
    a file `slow` beside them says that one has begun. With `hold_update` it waits when it has written so many
    lines into its `updates.jsonl`; checkpoints come after every second one.
    """

    def __init__(
        self,
        folder: Path,
        *argv: object,
        hold: tuple[str, int] | None = None,
        slow_after: int | None = None,
        hold_update: int | None = None,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._alive, held = fork_server.CONTEXT.Pipe(duplex=False)
        command = [str(part) for part in argv]
        self._process = fork_server.start(_run, folder, held, hold, slow_after, hold_update, command)
        held.close()

    @property
    def pid(self) -> int:
        """The number of its process."""
        assert self._process.pid is not None
        return self._process.pid

    def when(self, reached: Callable[[], bool]) -> Running:
        """Wait until something has come about, with the command still running."""
        deadline = time.monotonic() + 300  # on a busy machine
        while not reached():
            assert self._process.is_alive(), self.end()
            assert time.monotonic() < deadline, self.end(signal.SIGKILL)
            time.sleep(0.002)
        return self

    def end(self, with_signal: int | None = None, *, group: bool = False) -> tuple[int, str, str]:
        """Send the signal, to the whole process group if asked, and return exit code, stdout and stderr."""
        if with_signal is not None:
            (os.killpg if group else os.kill)(self.pid, with_signal)
        self._process.join(300)
        assert self._process.exitcode is not None, "it hangs"
        return self._process.exitcode, *((self._folder / name).read_text() for name in ("out", "err"))

    def none_is_left(self) -> bool:
        """Whether, in a few seconds, neither it nor a process that it forked is alive."""
        return self._alive.poll(60)  # ready when the last of them has closed its end


def _run(
    folder: Path,
    held: Connection,
    hold: tuple[str, int] | None,
    slow_after: int | None,
    hold_update: int | None,
    argv: list[str],
) -> None:
    os.setsid()  # as a shell does for each of its jobs
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    torch.set_num_threads(1)
    if hold:
        _hold_at(*hold)
    if slow_after:
        _be_slow_after(slow_after, Path(argv[argv.index("--out") + 1]) / "episodes.jsonl")
    if hold_update:
        _hold_at_update(hold_update)
    sys.exit(main(argv))


def _wait() -> None:
    for _ in range(12_000):  # ten minutes; a signal that came just before a long sleep would not end it
        time.sleep(0.05)


def _hold_at(author: str, count: int) -> None:
    append, left = EpisodeLog.append, count

    def append_and_hold(log: EpisodeLog, by: str, result: EpisodeResult) -> None:
        nonlocal left
        append(log, by, result)
        left -= by == author
        if left == 0:
            _wait()

    EpisodeLog.append = append_and_hold  # type: ignore[method-assign]


def _hold_at_update(count: int) -> None:
    prunegym.agents.per_input.ppo.SAVE_EVERY = 2
    appending = prunegym.scripts.train_per_input._appending

    def appending_and_holding(path: Path) -> Callable[[dict[str, float]], None]:
        append = appending(path)

        def append_and_hold(record: dict[str, float]) -> None:
            append(record)
            if len(path.read_text().splitlines()) == count:
                _wait()

        return append_and_hold

    prunegym.scripts.train_per_input._appending = appending_and_holding


def _be_slow_after(count: int, log: Path) -> None:
    apply = PrunableNetwork.apply

    def apply_slowly(network: PrunableNetwork, plan: CompressionPlan, **how: Any) -> Compressed:
        if log.exists() and len(log.read_text().splitlines()) >= count:
            (log.parent / "slow").touch()
            _wait()
        return apply(network, plan, **how)

    PrunableNetwork.apply = apply_slowly  # type: ignore[method-assign]
