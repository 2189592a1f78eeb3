"""Environments in forked processes that share the network and the images."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing import connection, parent_process
from multiprocessing.process import BaseProcess
from typing import Any

from stable_baselines3.common.vec_env import SubprocVecEnv

from prunegym.agents.errors import AgentError
from prunegym.agents.interface import GymEnv
from prunegym.agents.vector.wrappers import FAILURE

INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM)


class _Answers:
    """The near end of the pipe to a process: what `recv` waits for may be that the process ended."""

    def __init__(self, number: int, pipe: connection.Connection, process: BaseProcess) -> None:
        self._number = number
        self._pipe = pipe
        self._process = process
        self.send, self.close = pipe.send, pipe.close

    def recv(self) -> Any:
        """Return the answer.

        Raises:
            AgentError: the process ended without one.
            Exception: what the environment raised.
        """
        # the pipe alone does not tell of an end: processes that were forked later hold its far end open
        connection.wait([self._pipe, self._process.sentinel])
        try:
            if not self._pipe.poll():
                raise EOFError
            answer = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join()
            raise AgentError(
                f"the process of environment {self._number} ended (exit code {self._process.exitcode}); "
                "see to the cause, perhaps to memory, and go on with --resume"
            ) from error
        for part in answer if isinstance(answer, tuple) else ():
            if isinstance(part, dict) and FAILURE in part:
                raised, story = part[FAILURE]
                raise raised from RuntimeError(story)
        return answer


class ForkedVecEnv(SubprocVecEnv):
    """Environments in forked processes, which end with this one, however it ends.

    Args:
        starts: one for each process, called there; each calls `follow_parent` before all else.
    """

    remotes: Sequence[Any]

    def __init__(self, starts: Sequence[Callable[[], GymEnv]]) -> None:
        # held back meanwhile: a fork begins with this process's handlers, and would end in a traceback
        held = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTIONS)
        try:
            super().__init__(list(starts), start_method="fork")
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        ends = zip(self.remotes, self.processes, strict=True)
        self.remotes = [_Answers(number, *end) for number, end in enumerate(ends)]

    def close(self) -> None:
        """End the processes at once; they have nothing to put away.

        Stable-Baselines3 would first await the step at hand, and for ever if some of it was received already.
        """
        for process in self.processes:
            process.terminate()
        for process, remote in zip(self.processes, self.remotes, strict=True):
            process.join()
            remote.close()
        self.closed = True


def follow_parent() -> None:
    """Leave it to the parent to end this process: on its request, or by ending itself, be it by SIGKILL."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to parent and children alike
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTIONS)
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        # the pipe of commands does not tell: its far end is open in the siblings that were forked later
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
