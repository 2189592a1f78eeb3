"""An argument parser that reads any flag from a YAML file too, and speaks in one line."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from prunegym.pruning.errors import one_line
from prunegym.pruning.files.plain_data import read_yaml, shortened

MAX_SEED = 2**31 - 1  # some seeds are sums of it and a small number, and NumPy takes none above 2**32
MAX_EPISODES = 10_000_000


class UsageError(Exception):
    """The command line or its YAML file is wrong; one line that says the way out."""


class HelpShown(SystemExit):
    """The help was asked for and is printed."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UsageError, and reads any flag from `--config FILE.yaml` too."""

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(prog=f"prunegym {verb}", description=description, allow_abbrev=False)
        self.add_argument(
            "--config", type=Path, metavar="FILE", help="YAML file of flags; the command line wins"
        )

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Raise HelpShown; argparse ends here after the help alone, and would not see that it did not fit."""
        sys.stdout.flush()
        raise HelpShown(status)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError; argparse would print its usage and exit."""
        raise UsageError(f"{message}; see `{self.prog} --help`")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse the command line, its YAML file first.

        Raises:
            UsageError: a flag is unknown or its value wrong, here or in the YAML file.
        """
        with suppress(FileNotFoundError):  # a working folder that was deleted
            if not _fits_into_path(os.getcwd()):
                raise UsageError(f"the working folder {os.getcwd()!r} is no UTF-8; rename it")
        self._check_texts(argv)
        if config := self.parse_known_args(argv)[0].config:
            flags = self._from_yaml(config, argv)
            self._check_texts(flags)
            argv = [*flags, *argv]
        args, unknown = self.parse_known_args(argv)
        if unknown:
            self._refuse_unknown(unknown[0])
        return args

    def _check_texts(self, argv: Sequence[str]) -> None:
        """Refuse values that are empty, which paths take for the working folder, or that no path can hold."""
        flag = "a value"
        for part in argv:
            name, equals, value = part.partition("=")
            if part.startswith("--"):
                flag = f"argument {name}"
            if part.startswith("--") and not equals:
                continue
            text = value if part.startswith("--") else part
            if not text.strip():
                self.error(f"{flag} is empty; name what is meant, or leave it out")
            if text == "--":  # argparse takes it for the end of the flags
                self.error(f"{flag} is '--', which is no value")
            if not _fits_into_path(text):
                self.error(f"{flag} holds a character that is no text: {shortened(text)!r}; rename it")

    def _refuse_unknown(self, flag: str) -> NoReturn:
        near = difflib.get_close_matches(flag, self._option_string_actions, n=1)
        self.error(f"unknown argument {flag}" + (f"; did you mean {near[0]}?" if near else ""))

    def _from_yaml(self, path: Path, argv: Sequence[str]) -> list[str]:
        """Return a YAML file's keys as flags, so that both go through the same checks; `argv` wins."""
        given = {part.partition("=")[0] for part in argv}
        try:
            data = read_yaml(path) or {}
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read {path}: {one_line(error)}") from error
        if not isinstance(data, dict):
            raise UsageError(f"{path} must map flags to values, such as episodes: 200")
        flags: list[str] = []
        for key, value in data.items():
            flag = f"--{str(key).replace('_', '-')}"
            action = self._option_string_actions.get(flag)
            if action is None:
                self._refuse_unknown(flag)
            flags += [] if flag in given else _as_flags(flag, action, value)
        return flags


def _fits_into_path(text: str) -> bool:
    """Return whether all that writes files can take text for a path; some take UTF-8 alone."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:  # half a character, or a byte of the command line that is no UTF-8
        return False


def plain(flags: argparse.Namespace) -> dict[str, Any]:
    """Return all flags as plain data, fit for JSON."""
    entries = {name: value for name, value in vars(flags).items() if name != "config"}
    return {name: str(value) if isinstance(value, Path) else value for name, value in entries.items()}


def _as_flags(flag: str, action: argparse.Action, value: Any) -> list[str]:
    if isinstance(value, bool) and action.nargs in (0, "?"):
        return [flag] if value else []
    if value is None:
        return []
    if isinstance(value, dict):
        value = [f"{key}={entry}" for key, entry in value.items()]
    values = [str(entry) for entry in value] if isinstance(value, list) else [str(value)]
    repeats = isinstance(action, argparse._AppendAction)
    return [part for entry in values for part in (flag, entry)] if repeats else [flag, *values]


def whole(low: int, high: int) -> Callable[[str], int]:
    """Return a function that reads a whole number within a range, both ends included, for `type=`."""

    def read(text: str) -> int:
        with suppress(ValueError):  # also of more digits than Python reads
            if low <= int(text) <= high:
                return int(text)
        raise argparse.ArgumentTypeError(
            f"must be a whole number from {low} to {high}, got {shortened(text)!r}"
        )

    return read


def number(low: float, high: float) -> Callable[[str], float]:
    """Return a function that reads a number within a range, both ends included, for `type=`."""

    def read(text: str) -> float:
        with suppress(ValueError):
            if low <= float(text) <= high:  # a NaN fails every comparison
                return float(text)
        raise argparse.ArgumentTypeError(
            f"must be a number from {low:g} to {high:g}, got {shortened(text)!r}"
        )

    return read
