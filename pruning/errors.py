"""Named errors for the user's mistakes, and how failures of the machine are told from them.

Each message is one line that says the way out.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class PruningError(Exception):
    """Base of every error this project raises on purpose."""


class UnknownNameError(PruningError):
    """A registry, a network or a layer pattern was asked for a name it does not hold."""


class UntraceableModelError(PruningError):
    """The model cannot be traced at all, so nothing in it can be pruned safely."""


class WeightsError(PruningError):
    """A weights file is missing, damaged, or does not fit the network."""


class DataError(PruningError):
    """Images or labels are missing, damaged, of the wrong shape or type, or out of range."""


class PlanError(PruningError):
    """A pruning plan is malformed or names what the network does not have."""


class BudgetError(PruningError):
    """A budget is malformed."""


class ImpossibleBudgetError(BudgetError):
    """No plan reaches the budget; the message says the smallest that can be reached."""


class ExportError(PruningError):
    """A network cannot be written for another runtime, or what was written does not compute the same."""


class UserCodeError(PruningError):
    """A user's network or function failed where nothing can make up for it."""


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line, fit for a terminal."""
    return printable(" ".join(message_of(error).split()))


def message_of(error: BaseException) -> str:
    """Return the message of an error as it is; a user's error may be unable to say it."""
    try:
        return str(error)
    except Exception:
        return "it has no message that can be shown"


def printable(text: object) -> str:
    r"""Return text in which control characters and whatever else cannot be seen are escaped.

    Names of files and modules are a stranger's, and a terminal would obey what they hold.

    Example:
        >>> printable("layer\x1b[31m")
        'layer\\x1b[31m'
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in str(text)
    )


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
