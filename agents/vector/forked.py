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


class _Pipe:
    """The parent's end of the pipe to a process, with a `recv` that notices when the process has ended."""

    def __init__(self, index: int, pipe: connection.Connection, process: BaseProcess) -> None:
        self._index = index
        self._pipe = pipe
        self._process = process
        self.send, self.close = pipe.send, pipe.close

    def recv(self) -> Any:
        """Return the reply of the process.

        Raises:
            AgentError: the process ended without a reply.
            Exception: the exception that the environment raised.
        """
        # the pipe alone does not show that a process ended, as later forks hold the child's end open
        connection.wait([self._pipe, self._process.sentinel])
        try:
            if not self._pipe.poll():
                raise EOFError
            reply = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join()
            raise AgentError(
                f"the process of environment {self._index} ended (exit code {self._process.exitcode}); "
                "see to the cause, perhaps to memory, and go on with --resume"
            ) from error
        for part in reply if isinstance(reply, tuple) else ():
            if isinstance(part, dict) and FAILURE in part:
                raised, stack_trace = part[FAILURE]
                raise raised from RuntimeError(stack_trace)
        return reply


class ForkedVecEnv(SubprocVecEnv):
    """Environments in forked processes, which end with this one, however it ends.

    Args:
        starts: functions that make the environments, one for each process and called there; each calls
            `follow_parent` first.
    """

    remotes: Sequence[Any]

    def __init__(self, starts: Sequence[Callable[[], GymEnv]]) -> None:
        # signals are blocked meanwhile, as a fork inherits the handlers and would end in a traceback
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTIONS)
        try:
            super().__init__(list(starts), start_method="fork")
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        ends = zip(self.remotes, self.processes, strict=True)
        self.remotes = [_Pipe(index, *end) for index, end in enumerate(ends)]

    def close(self) -> None:
        """End the processes at once; they have nothing to save.

        Stable-Baselines3 would first wait for the current step, forever if part of it was already received.
        """
        for process in self.processes:
            process.terminate()
        for process, remote in zip(self.processes, self.remotes, strict=True):
            process.join()
            remote.close()
        self.closed = True


def follow_parent() -> None:
    """End this process when the parent asks for it or ends itself, even by SIGKILL, and ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to the parent and the children
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTIONS)
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        # the pipe of commands does not show it, as siblings that were forked later hold its other end open
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
