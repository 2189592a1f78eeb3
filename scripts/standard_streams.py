"""Standard output and error that stand what becomes of them, or what a user's code does with them."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

_kept: list[tuple[TextIO, TextIO]] = []  # output and error of the verbs that are running, the innermost last


def standard_output() -> TextIO:
    """Return where results go, even if a user's code has set another standard output meanwhile."""
    return _kept[-1][0] if _kept else sys.stdout


def standard_error() -> TextIO:
    """Return where messages go, likewise."""
    return _kept[-1][1] if _kept else sys.stderr


@contextmanager
def sturdy_streams() -> Iterator[None]:
    """Replace standard output and error for the block.

    What a reader that went away would have got is dropped: it is no error, all the more as results lie in
    files. Nor is it one if standard error cannot be written. A character that a stream cannot encode is
    escaped. To close a stream only flushes it. Streams that are no files, as in a notebook, stay.
    """
    former = sys.stdout, sys.stderr
    ours = _sturdy(sys.stdout, forgiven=BrokenPipeError), _sturdy(sys.stderr, forgiven=OSError)
    sys.stdout, sys.stderr = ours
    _kept.append(ours)
    try:
        yield
    finally:
        _kept.pop()
        for stream in ours:
            with suppress(OSError, ValueError):  # where that matters, it was flushed before
                stream.flush()
        sys.stdout, sys.stderr = former


def _sturdy(stream: TextIO | None, *, forgiven: type[OSError]) -> TextIO:
    if stream is None:  # it was closed before Python started
        number, isatty, encoding = os.open(os.devnull, os.O_WRONLY), False, "utf-8"
    else:
        try:
            number, isatty, encoding = stream.fileno(), stream.isatty(), stream.encoding
        except (OSError, ValueError):
            return stream
        with suppress(OSError):
            stream.flush()
    file = io.BufferedWriter(_File(number, forgiven))
    at_once = isatty or forgiven is OSError
    return _Stream(file, encoding=encoding, errors="backslashreplace", line_buffering=at_once)


class _File(io.FileIO):
    """A file that takes a forgiven error for success."""

    def __init__(self, number: int, forgiven: type[OSError]) -> None:
        super().__init__(number, "w", closefd=False)
        self._forgiven = forgiven

    def write(self, data: Any, /) -> int:
        """Write bytes and return how many; all of them where they are dropped."""
        try:
            return super().write(data)
        except self._forgiven:
            return memoryview(data).nbytes
        except OSError as error:
            raise OSError(error.errno, error.strerror, "standard output") from error


class _Stream(io.TextIOWrapper):
    def close(self) -> None:
        """Flush the stream, and no more."""
        self.flush()
