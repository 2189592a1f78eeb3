"""Commands killed at a random moment or at a file-system step, repeated, and killed again."""

from __future__ import annotations

import signal
import time
from functools import partial
from random import Random

from prunegym.scripts.benchmarks.faults.children import Ended, Place, Running, run
from prunegym.scripts.benchmarks.faults.commands import COMMANDS
from prunegym.scripts.benchmarks.faults.comparing import differences, written
from prunegym.scripts.benchmarks.faults.steps import killed_at
from prunegym.scripts.benchmarks.faults.verdicts import Finding, fault, shortened
from prunegym.scripts.benchmarks.faults.world import World

CASES = 10 * len(COMMANDS)
AGAIN = 0.25  # of the cases: killed twice
TORN = 0.003  # seconds after a step begins within which a file may be half-written


def attack(number: int, rng: Random, world: World, place: Place) -> Finding:
    """Kill a command, repeat it, and compare what it wrote with a command that nobody disturbed."""
    name = list(COMMANDS)[number % len(COMMANDS)]
    kill = (_at_a_moment, _at_a_step)[number // len(COMMANDS) % 2]
    told = []
    for _ in range(1 + (rng.random() < AGAIN)):
        how, killed = kill(name, next_argv(name, world, place), rng, world, place)
        told.append(how)
        if killed.lingering:
            return Finding("lingering process", f"{name}, killed {how}")
    return repeated(name, f"{name}, killed {' and '.join(told)}", world, place)


def next_argv(name: str, world: World, place: Place) -> list[str]:
    """Return the command line with which a command is begun, or is repeated where it has begun."""
    if (place.out / "tensorboard").exists():
        time.sleep(1.0 - time.time() % 1.0)  # event files are ordered by the second they were opened in
    return world.argv(name, repeated=place.out.exists())


def repeated(name: str, attack: str, world: World, place: Place, *, anew: bool = False) -> Finding:
    """Repeat a command that was disturbed, perhaps from its beginning, and return what came of it."""
    argv = next_argv(name, world, place)
    ended = run(place, ["--overwrite" if anew and word == "--resume" else word for word in argv])
    if found := fault(ended, place):
        return Finding(found, attack, shortened(ended))
    if ended.code != 0:
        return Finding("not resumed", attack, shortened(ended))
    return compared(name, attack, world, place)


def compared(name: str, attack: str, world: World, place: Place) -> Finding:
    """Compare what a command wrote with what it writes if nobody disturbs it."""
    expected = world.reference(name).files
    found = written(place)
    other = differences(found, expected)
    left = [file for file in other if file not in expected]
    # what a cache lacks is made again
    missing = [file for file in other if file not in found and file.startswith("cache/")]
    if wrong := [file for file in other if file not in (*left, *missing)]:
        return Finding("unequal", attack, f"other are {', '.join(wrong)}")
    if left:
        return Finding("leftover", attack, f"there still are {', '.join(left)}")
    return Finding("equal", attack)


def _at_a_moment(name: str, argv: list[str], rng: Random, world: World, place: Place) -> tuple[str, Ended]:
    running = Running(place, argv)
    moment = rng.random() * world.reference(name).seconds
    if not running.ended_within(moment):
        running.send(signal.SIGKILL)
    return f"after {moment:.2f} s", running.end()


def _at_a_step(name: str, argv: list[str], rng: Random, world: World, place: Place) -> tuple[str, Ended]:
    reference = world.reference(name)
    number, delay = reference.drawn(rng), rng.choice([None, rng.random() * TORN])
    ended = run(place, argv, partial(killed_at, (place.work, place.cache), number, delay))
    when = f"{1e3 * delay:.1f} ms into" if delay else "before"
    return f"{when} step {number}, {reference.steps[number]}", ended
