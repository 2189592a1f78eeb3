"""Bad input: flags, YAML files, images, weights, networks, folders of images, and odd names."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import NamedTuple
from unittest import mock

from prunegym.scripts.benchmarks.faults.bad_code import network, score
from prunegym.scripts.benchmarks.faults.bad_files import data, images, odd_name, weights
from prunegym.scripts.benchmarks.faults.children import Place, run
from prunegym.scripts.benchmarks.faults.quick_commands import QUICK, Case, quick
from prunegym.scripts.benchmarks.faults.verdicts import Finding, fault, shortened
from prunegym.scripts.benchmarks.faults.world import World
from prunegym.scripts.cli import DONE, VERBS
from prunegym.scripts.options.parser import Parser

CASES = 45 * 14
LARGE = ("99999999", "9" * 12)  # which may be meant
NUMBERS = (
    *("-1", "0", "1", "2", "0.5", "1.5", "-0.0", "1e-9", "1e-320", "1e99", "-1e99", "1e400", "nan", "inf"),
    *("-inf", *LARGE, "9" * 30, "-" + "9" * 30, "9" * 5000, "0x10", "1_000", "\uff11\uff12"),
)
TEXTS = (
    *("", " ", "-", "--", "x", "=", "a=b", "a=", "=b", ":", "none", "auto", "true", "null", "~", "{}", "[]"),
    *("[/red]", "[bold]x", "\x1b[31mred", "\x07", "a\nb", "a\tb", "\u202e\u200b", "\u0130\u0131", "%s%n"),
    *("\U0001f600", "e\u0301", "x\udcff", "a" * 5000, "${HOME}", "$(touch ../../../ran)", "[1, [2", "{a: b"),
    *("../../x", "/etc/passwd", "/dev/null", "/dev/full", "/proc/self/mem", "os:getcwd", "x.py:", "x.py:y"),
    *("macs=nan", "macs=0", "macs=1e-9", "macs=0.5..", "macs=0.5..0.1", "gamma=nan", "gamma=[1", "meta"),
    *("n_epochs=999999999999", "policy_kwargs.net_arch=[0]", "learning_rate=1e400", "npz:", "npz:x"),
    *("folder:", "folder:/", "cifar10:", "digits:x", "timm/", "torchvision/../x"),
)
LONG = ("--episodes", "--epochs", "--n-envs", "--rounds", "--samples", "--tune-epochs")  # to work, if large
NEVER = ("--help", "--version", "--cluster", "--download")  # no network is reached for


class _Caught(Exception):
    """A verb has made its parser."""


class Flag(NamedTuple):
    """A flag of a verb."""

    verb: str
    name: str
    values: int  # that it takes at once, in a case
    numeric: bool


@functools.cache
def all_flags() -> tuple[Flag, ...]:
    """Return the flags of all verbs that take a value."""
    found = []

    def catch(parser: Parser, argv: Sequence[str]) -> None:
        verb = parser.prog.removeprefix("prunegym ")
        for name, action in sorted(parser._option_string_actions.items()):
            if name not in NEVER and name.startswith("--") and action.nargs != 0:
                values = action.nargs if isinstance(action.nargs, int) else 1
                found.append(Flag(verb, name, values, numeric=action.type not in (None, Path)))
        raise _Caught

    with mock.patch.object(Parser, "parse", catch):
        for verb in VERBS:
            with suppress(_Caught):
                importlib.import_module(f"prunegym.scripts.{verb.replace('-', '_')}").run([])
    return tuple(found)


def attack(number: int, rng: Random, world: World, place: Place) -> Finding:
    """Run a command on bad input; it must be refused in one line, or work where the input is right."""
    source, before = SOURCES[number % len(SOURCES)], SOURCES[: number % len(SOURCES)]
    turn = number // len(SOURCES) * SOURCES.count(source) + before.count(source)
    told, argv, must_fail = source(turn, rng, world, place)
    ended = run(place, argv)
    if found := fault(ended, place):
        return Finding(found, told, shortened(ended))
    if must_fail and ended.code == DONE:
        return Finding("wrong code", told, shortened(ended))
    return Finding("done" if ended.code == DONE else "refused", told, shortened(ended))


def _flag(number: int, rng: Random, world: World, place: Place) -> Case:
    flags = all_flags()
    flag = flags[number * 37 % len(flags)]  # a prime, so that the first few are of all verbs
    numbers = [word for word in NUMBERS if not (word in LARGE and flag.name in LONG)]
    usual, rare = (numbers, TEXTS) if flag.numeric else (TEXTS, numbers)
    words = [flag.name, *(rng.choice(usual if rng.random() < 0.8 else rare) for _ in range(flag.values))]
    if flag.values == 1:
        words = ["=".join(words)]
    return Case(f"{flag.verb} {_short(words)}", [*quick(flag.verb, world), *words])


def _short(words: Sequence[str]) -> str:
    return " ".join(ascii(word if len(word) < 60 else f"{word[:40]}...({len(word)})")[1:-1] for word in words)


def _yaml(number: int, rng: Random, world: World, place: Place) -> Case:
    verb = rng.choice([verb for verb in QUICK if verb != "benchmark"])
    flag = rng.choice([flag for flag in all_flags() if flag.verb == verb])
    key = flag.name.removeprefix("--")
    levels = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 12)]
    bomb = "\n".join(["a0: &a0 [x, x, x, x, x, x, x, x, x]", *levels])
    scalar = rng.choice(["2020-01-01", ".nan", ".inf", "1e999", "0o17", "~", "no", "=", "9" * 5000])
    texts = [
        *(f"{bomb}\n{key}: *a11\n", f"{key}: {'[' * 3000}{']' * 3000}\n", f"{key}: {'x' * 100_000}\n"),
        *(f"{key}: {{a: {{b: {{c: d}}}}}}\n", f"{key}: [1, {{a: 2}}, null, [3]]\n", f"{key}: {scalar}\n"),
        *(f"{key}: !!python/object/apply:os.mkdir ['{place.ran}']\n", f'{key}: "\\0\\x1b[31m [/red]"\n'),
        *(f"{key}: \udcff\udcfe\n", f"- {key}\n- 3\n", f"{key}: 1\n{key}: 2\n", f"? [{key}]\n: 1\n"),
        *(f"1: 2\nnull: 3\n{key}: x\n", "\0\1\2", "", "just text", "&a [*a]", "config: x.yaml\n"),
        *("%YAML 9.9\n---\na: b\n", f"{key}: \U0001f600\n"),
    ]
    text = texts[number % len(texts)]
    (place.work / "flags.yaml").write_text(text, encoding="utf-8", errors="surrogateescape")
    return Case(f"{verb}, a YAML file: {_short([text])}", [*quick(verb, world), "--config", "flags.yaml"])


SOURCES: Sequence[Callable[[int, Random, World, Place], Case]] = (
    _flag, _yaml, _flag, data, _flag, weights, _flag, network, _flag, score, _flag, images, _flag, odd_name,
)  # fmt: skip
