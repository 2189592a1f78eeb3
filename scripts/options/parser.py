"""An argument parser that reads any flag from a YAML file too, and speaks in one line."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import yaml

from prunegym.pruning.errors import one_line


class UsageError(Exception):
    """The command line or its YAML file is wrong; one line that says the way out."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UsageError, and reads any flag from `--config FILE.yaml` too."""

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(prog=f"prunegym {verb}", description=description, allow_abbrev=False)
        self.add_argument(
            "--config", type=Path, metavar="FILE", help="YAML file of flags; the command line wins"
        )

    def error(self, message: str) -> NoReturn:
        """Raise UsageError; argparse would print its usage and exit."""
        raise UsageError(f"{message}; see `{self.prog} --help`")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse the command line, its YAML file first.

        Raises:
            UsageError: a flag is unknown or its value wrong, here or in the YAML file.
        """
        config = self.parse_known_args(argv)[0].config
        words = [*(self._from_yaml(config, argv) if config else []), *argv]
        with suppress(FileNotFoundError):  # a working folder that was deleted
            _refuse_undecodable(os.getcwd())
        for word in words:
            _refuse_undecodable(word)
        args, unknown = self.parse_known_args(words)
        if unknown:
            self._refuse_unknown(unknown[0])
        return args

    def _refuse_unknown(self, flag: str) -> NoReturn:
        near = difflib.get_close_matches(flag, self._option_string_actions, n=1)
        self.error(f"unknown argument {flag}" + (f"; did you mean {near[0]}?" if near else ""))

    def _from_yaml(self, path: Path, argv: Sequence[str]) -> list[str]:
        """Return a YAML file's keys as flags, so that both go through the same checks; `argv` wins."""
        given = {part.partition("=")[0] for part in argv}
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
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


def _refuse_undecodable(text: str) -> None:
    """Refuse what could be written into a run's records, but not be read from them again."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"{text!r} is no UTF-8; rename the file or folder") from error


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


def positive(text: str) -> int:
    """Read a whole number of 1 or more, for `type=`."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def natural(text: str) -> int:
    """Read a whole number of 0 or more, for `type=`."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {value}")
    return value
