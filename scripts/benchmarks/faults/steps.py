"""The file-system steps of a command: counted, and something done at one of them."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

# audit event -> the places of its paths, and that of the folder's handle that the first is relative to
EVENTS: dict[str, tuple[tuple[int, ...], int | None]] = {
    "open": ((0,), None),
    "os.rename": ((0, 1), 2),
    "os.link": ((0, 1), 2),
    "os.symlink": ((0, 1), 2),
    "os.remove": ((0,), 1),
    "os.mkdir": ((0,), 2),
    "os.rmdir": ((0,), 1),
    "os.chmod": ((0,), 2),
    "os.truncate": ((0,), None),
    "fsync": ((0,), None),
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def count_steps(
    folders: Sequence[Path], act: Callable[[int, str], None], *, reading: bool = False
) -> list[str]:
    """Call a function at each step of this process below some folders, from now on.

    Args:
        folders: where steps are counted.
        act: called just before each step, with its number from 0 and what it is, such as "open out/x.json".
        reading: files opened to be read count, too.

    Returns:
        What the steps so far were; grows.
    """
    steps: list[str] = []
    process, roots = os.getpid(), tuple(f"{folder.resolve()}{os.sep}" for folder in folders)
    fsync = os.fsync

    def seen(event: str, args: tuple[Any, ...]) -> None:
        if event not in EVENTS or os.getpid() != process:
            return
        if event == "open" and not reading and not (args[2] or 0) & WRITING:
            return
        path = _path(args, *EVENTS[event])
        if path is None or not path.startswith(roots):
            return
        inside = next(path.removeprefix(root) for root in roots if path.startswith(root))
        steps.append(f"{event.removeprefix('os.')} {inside}")
        act(len(steps) - 1, steps[-1])

    def audited_fsync(file: Any) -> None:
        seen("fsync", (file,))
        fsync(file)

    sys.addaudithook(seen)
    mock.patch.object(os, "fsync", audited_fsync).start()
    return steps


def _path(args: tuple[Any, ...], places: tuple[int, ...], handle_at: int | None) -> str | None:
    """Return the last path of an event, absolute; None where it is no path."""
    path = args[places[-1]]
    if hasattr(path, "fileno"):
        path = path.fileno()
    try:
        if isinstance(path, int):
            return os.readlink(f"/proc/self/fd/{path}")
        name = os.fsdecode(path)
        handle = args[handle_at] if handle_at is not None else -1
        if not os.path.isabs(name) and isinstance(handle, int) and handle >= 0:
            name = os.path.join(os.readlink(f"/proc/self/fd/{handle}"), name)
    except (OSError, TypeError, ValueError):
        return None
    return os.path.abspath(name)


def noted(folders: Sequence[Path], note: Path) -> None:
    """Have this process write down its steps, as JSON in the file `note`."""
    steps: list[str] = []

    def act(number: int, step: str) -> None:
        note.write_text(json.dumps(steps), encoding="utf-8")

    steps = count_steps(folders, act)


def killed_at(folders: Sequence[Path], number: int, delay: float | None) -> None:
    """Have this process die just before a step, or at a moment so many seconds after it has begun."""

    def act(at: int, step: str) -> None:
        if at != number:
            return
        if delay is None:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            signal.setitimer(signal.ITIMER_REAL, delay)  # nothing handles it, so that it kills

    count_steps(folders, act)


def failing_at(
    folders: Sequence[Path], number: int, code: int, *, lasting: bool, reading: bool = False
) -> None:
    """Have a step of this process fail with an error of the machine, and all later ones if it is lasting."""

    def act(at: int, step: str) -> None:
        kind, _, inside = step.partition(" ")
        if at == number or (lasting and at > number and kind not in ("remove", "rmdir")):
            raise OSError(code, os.strerror(code), inside)

    count_steps(folders, act, reading=reading)
