"""Failures of the machine, told from faults of what the user gave, whatever a library makes of them."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prunegym.pruning.errors import one_line

_FREE_SPACE = "free some space, or write elsewhere"
_WRITING = {  # errors of a disk -> what to do about them
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or write elsewhere",
    errno.EROFS: "write elsewhere",
    errno.EIO: "see to the disk",
}
_WAYS_OUT = {
    **_WRITING,
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "end other programs, or raise the machine's limit on open files",
    errno.EACCES: "change its permissions, or name another",
}
_NO_MEMORY = re.compile(
    "out of memory|can't allocate memory|not enough memory|_ALLOC_FAILED"
    "|failed to map segment|error return without exception set"  # of libraries, and of code in C
)
_NUMBERED = re.compile(r"\(os error (\d+)\)|unable to (?:open|mmap) .*\((\d+)\)$")  # by safetensors, by torch
_MORE_MEMORY = "use smaller batches or images, another --device, or a machine with more of it"


def machine_failure(error: BaseException) -> OSError | MemoryError | None:
    """Return the failure of the machine that an error stands for, None if it stands for none.

    A full disk, too little memory, too many open files or a missing permission say nothing about what the
    user gave. Torch raises RuntimeError for them and safetensors an error of its own; other libraries raise
    theirs from them.
    """
    if isinstance(error, MemoryError):
        return error
    if isinstance(error, (RuntimeError, ImportError, SystemError)) and _NO_MEMORY.search(_text(error)):
        return MemoryError(_text(error))
    failure = _system_error(error)
    if failure is not None and failure.errno == errno.ENOMEM:
        return MemoryError(failure.strerror)
    if failure is not None and failure.errno in _WAYS_OUT:
        return failure
    return None if error.__cause__ is None else machine_failure(error.__cause__)


def raise_machine_failure(error: BaseException, *, reading: Path | None = None) -> None:
    """Raise the failure of the machine that an error stands for, if it stands for one.

    Called by handlers that take whatever else is raised for the fault of the user's network or file.

    Args:
        error: what was raised.
        reading: the file that was read, which can ask for any amount of memory if it is damaged.
    """
    failure = machine_failure(error)
    if isinstance(failure, MemoryError) and reading is not None:
        raise MemoryError(f"{reading} asks for more than there is, unless it is damaged") from error
    if failure is not None:
        raise failure from (None if failure is error else error)


@contextmanager
def written_to(path: Path | None) -> Iterator[None]:
    """Raise what the system refuses within this block as OSError, of this path where it names none.

    With None nothing is written, and all is raised as it is.
    """
    try:
        yield
    except Exception as error:
        failure = _system_error(error)
        if path is None or failure is None or failure.filename is not None:
            raise
        raise OSError(failure.errno, failure.strerror, str(path)) from error


def _system_error(error: BaseException) -> OSError | None:
    """Return the error of the system that an error of Python, torch or safetensors stands for."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    text = _text(error)
    if told := _NUMBERED.search(text):
        number = int(told[1] or told[2])
        return OSError(number, os.strerror(number))
    return None


def _text(error: BaseException) -> str:
    """Return what an error says; a stranger's own `__str__` is not called, since it may raise."""
    return " ".join(part for part in error.args if isinstance(part, str))


def machine_failure_line(failure: OSError | MemoryError) -> str:
    """Return what `machine_failure` returned as one line for the user, with the way out."""
    if isinstance(failure, MemoryError):
        details = f" ({one_line(failure)})" if str(failure) else ""
        return f"ran out of memory{details}; {_MORE_MEMORY}"
    assert failure.errno is not None
    what = os.strerror(failure.errno).lower()
    if failure.filename is not None:
        verb = "cannot write" if failure.errno in _WRITING else "cannot open"
        name = os.fsdecode(failure.filename) if isinstance(failure.filename, bytes) else failure.filename
        what = f"{verb} {name}: {what}"
    return f"{what}; {_WAYS_OUT[failure.errno]}"
