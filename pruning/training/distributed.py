"""Process groups that train one network together, on several GPUs or machines, through `accelerate`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prunegym.pruning.errors import PruningError, one_line
from prunegym.pruning.optional_packages import imported

_LAUNCH = "unset it, or start the command by accelerate launch or torchrun"


class ProcessGroup(Protocol):
    """Processes that train a network together; each holds all of it and sees its share of every batch."""

    @property
    def number(self) -> int:
        """The number of this process; process 0 writes files and shows progress."""

    @property
    def count(self) -> int:
        """The number of all processes."""

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum of every process's tensor; they are alike in shape, type and kind of device."""

    def wait(self) -> None:
        """Block until all processes have reached this call."""


class _SingleProcess:
    """A single process; it needs no package and exchanges nothing."""

    number = 0
    count = 1

    def total(self, tensor: Tensor) -> Tensor:
        """See ProcessGroup."""
        return tensor

    def wait(self) -> None:
        """See ProcessGroup."""


SINGLE_PROCESS: ProcessGroup = _SingleProcess()


class _LaunchedGroup:
    """A group that `accelerate launch` or `torchrun` started."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self.number: int = accelerator.process_index
        self.count: int = accelerator.num_processes

    def total(self, tensor: Tensor) -> Tensor:
        """See ProcessGroup."""
        return self._accelerator.reduce(tensor, reduction="sum")

    def wait(self) -> None:
        """See ProcessGroup."""
        self._accelerator.wait_for_everyone()


def _world_size() -> int:
    """Return how many processes a launcher started, which it says in an environment variable.

    Raises:
        PruningError: what it says is no number of processes.
    """
    value = os.environ.get("WORLD_SIZE") or "1"
    if not re.fullmatch("0*[1-9][0-9]{0,5}", value):
        raise PruningError(
            f"the environment variable WORLD_SIZE must be a number of processes, got {value!r}; {_LAUNCH}"
        )
    return int(value)


@contextmanager
def launched(device: str) -> Iterator[ProcessGroup]:
    """Join the process group that a launcher started, for the block; without a launcher, a single process.

    Args:
        device: `cpu`; or `cuda` or `auto`, for a GPU of this process's own.

    Raises:
        PruningError: `accelerate` is missing, the device is one particular GPU for several processes, or the
            launcher's environment variables make no sense.
    """
    if _world_size() == 1:
        yield SINGLE_PROCESS
        return
    if ":" in device:
        raise PruningError(f"several processes cannot share {device}; name cuda, and each takes its own")
    accelerate = imported("accelerate", extra="distributed", purpose="several processes")
    # without cpu=True it would not join the others where there is no GPU
    try:
        accelerator = accelerate.Accelerator(cpu=device == "cpu" or not torch.cuda.is_available())
    except Exception as error:  # its environment variables are checked in a dozen places
        raise PruningError(
            f"cannot join the processes that WORLD_SIZE tells of ({one_line(error)}); {_LAUNCH}"
        ) from error
    try:
        yield _LaunchedGroup(accelerator)
    finally:
        accelerator.end_training()


def share_of(processes: ProcessGroup, count: int) -> slice:
    """Return the slice of `count` items that belongs to this process; shares differ by at most one."""
    edges = [number * count // processes.count for number in (processes.number, processes.number + 1)]
    return slice(*edges)


def add_up_gradients_(processes: ProcessGroup, parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its sum over all processes; where no process has one there is none.

    Not DistributedDataParallel: it averages without regard to how many images each process saw, wants every
    parameter used in every step, and its wrapper would come between a network and its gates' hooks.
    """
    if processes.count == 1:
        return
    missing = [parameter.grad is None for parameter in parameters]
    grads = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
    # one message: a network has hundreds of tensors, most of them small
    known = 1 - grads[0].new_tensor(missing)
    sums = processes.total(torch.cat([known, *(grad.flatten() for grad in grads)]))
    counts, *parts = sums.split([len(grads), *(grad.numel() for grad in grads)])
    for parameter, count, part in zip(parameters, counts.tolist(), parts, strict=True):
        parameter.grad = part.view_as(parameter) if count else None
