"""Faults of the machine: failing file systems, limits, signals, streams and folders that are not as usual."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from random import Random

from prunegym.scripts.benchmarks.faults.children import Ended, Place, Running, limit_memory, run
from prunegym.scripts.benchmarks.faults.commands import COMMANDS
from prunegym.scripts.benchmarks.faults.kills import compared, repeated
from prunegym.scripts.benchmarks.faults.steps import count_steps, failing_at
from prunegym.scripts.benchmarks.faults.verdicts import Finding, fault, shortened
from prunegym.scripts.benchmarks.faults.world import CHECKPOINT, World
from prunegym.scripts.cli import DONE, IMPOSSIBLE, INTERRUPTED, MISUSED, TERMINATED

CASES = 160
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EMFILE)
ENDINGS = (DONE, MISUSED, IMPOSSIBLE)


def attack(number: int, rng: Random, world: World, place: Place) -> Finding:
    """Run a command on a machine with a fault, then without, and compare with one that nobody disturbed."""
    names = list(COMMANDS)
    strike = STRIKES[number % len(STRIKES)]
    return strike(names[(number // len(STRIKES) * 5 + number) % len(names)], rng, world, place)


def _failing_step(name: str, rng: Random, world: World, place: Place) -> Finding:
    reference = world.reference(name)
    number, code, lasting = reference.drawn(rng), rng.choice(ERRORS), rng.random() < 0.5
    while reference.steps[number].startswith(
        ("remove ", "rmdir ")
    ):  # what stays is the next command's to remove
        number = reference.drawn(rng)
    reading = rng.random() < 0.2  # then steps are more, and this one may be another
    prepare = partial(failing_at, (place.work, place.cache), number, code, lasting=lasting, reading=reading)
    when = "from" if lasting else "at"
    told = f"{name}, {errno.errorcode[code]} {when} step {number}, "
    told += "reading counted" if reading else reference.steps[number]
    return _disturbed(name, told, prepare, world, place)


def _small_files(name: str, rng: Random, world: World, place: Place) -> Finding:
    most = rng.choice([3000, 5000, 8000, 20_000, 50_000])  # what is printed goes to files, too
    prepare = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (most, most))
    return _disturbed(name, f"{name}, files of at most {most} bytes", prepare, world, place)


def _few_files(name: str, rng: Random, world: World, place: Place) -> Finding:
    more = rng.choice([0, 1, 2, 3, 5, 8])

    def prepare() -> None:
        most = max(int(handle) for handle in os.listdir("/proc/self/fd")) + more
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    return _disturbed(name, f"{name}, {more} more files may be open", prepare, world, place)


def _little_memory(name: str, rng: Random, world: World, place: Place) -> Finding:
    more = rng.choice([1, 4, 16, 64, 128])
    prepare = partial(limit_memory, more * 2**20)
    return _disturbed(name, f"{name}, {more} MB more of memory", prepare, world, place)


def _removed_folder(name: str, rng: Random, world: World, place: Place) -> Finding:
    steps = world.reference(name).steps
    number = rng.randrange(len(steps))

    def act(at: int, step: str) -> None:
        if at == number:
            shutil.rmtree(place.out, ignore_errors=True)

    prepare = partial(count_steps, (place.work, place.cache), act)
    told = f"{name}, its folder removed at step {number}, {steps[number]}"
    return _disturbed(name, told, prepare, world, place, anew=True)


def _signal(name: str, rng: Random, world: World, place: Place) -> Finding:
    kind = rng.choice([signal.SIGTERM, signal.SIGINT])
    moment = rng.random() * world.reference(name).seconds
    running = Running(place, world.argv(name))
    if not running.ended_within(moment):
        running.send(kind)
    told, ended = f"{name}, {kind.name} after {moment:.2f} s", running.end()
    return _then_repeated(name, told, ended, world, place, codes=(DONE, INTERRUPTED, TERMINATED))


def _closed_stdout(name: str, rng: Random, world: World, place: Place) -> Finding:
    def prepare() -> None:
        os.close(1)
        sys.stdout = sys.__stdout__ = None  # type: ignore[misc]  # as Python has it then

    return _disturbed(name, f"{name}, standard output closed", prepare, world, place, silenced=True)


def _full_stdout(name: str, rng: Random, world: World, place: Place) -> Finding:
    def prepare() -> None:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)

    return _disturbed(name, f"{name}, standard output full", prepare, world, place, silenced=True)


def _left_reader(name: str, rng: Random, world: World, place: Place) -> Finding:
    def prepare() -> None:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)

    return _disturbed(name, f"{name}, standard output read by nobody", prepare, world, place, silenced=True)


def _no_home(name: str, rng: Random, world: World, place: Place) -> Finding:
    home = rng.choice([None, "", "/proc/nowhere", "/dev/null"])

    def prepare() -> None:
        del os.environ["HOME"], os.environ["PRUNEGYM_CACHE"]
        if home is not None:
            os.environ["HOME"] = home
        if not home:  # the true home of this user must not be touched
            os.environ["XDG_CACHE_HOME"] = str(place.cache)

    return _disturbed(name, f"{name}, HOME is {home}", prepare, world, place)


def _bad_cache(name: str, rng: Random, world: World, place: Place) -> Finding:
    kind = rng.choice(["a file", "below a file", "a link to nothing"])
    cache = place.root / "other"
    if kind == "a link to nothing":
        cache.symlink_to(place.root / "nothing" / "there")
    else:
        cache.touch()

    def prepare() -> None:
        os.environ["PRUNEGYM_CACHE"] = str(cache / "cache" if kind == "below a file" else cache)

    return _disturbed(name, f"{name}, the cache is {kind}", prepare, world, place)


def _planted_link(name: str, rng: Random, world: World, place: Place) -> Finding:
    """Repeat a command whose results hold a link to elsewhere; nothing there may be touched."""
    name = rng.choice([one for one, command in COMMANDS.items() if command.again == "--resume"])
    source = world.interrupted(name) if _resumable(name, world) else world.finished(name)
    world.copied(source, place)
    inside = [path for path in sorted(place.out.rglob("*")) if "tfevents" not in path.name]
    inside += [place.out / new for new in ("compressed", "pictures", "metrics.json", "plan.json", "policy")]
    planted = rng.choice(inside)
    if planted.is_dir() and not planted.is_symlink():
        shutil.rmtree(planted)
        target = place.outside
    else:
        planted.unlink(missing_ok=True)
        target = place.outside if rng.random() < 0.3 else place.outside / "precious"
    planted.symlink_to(target)
    how = rng.choice(["--resume", "--overwrite"])
    argv = [*world.argv(name), how]
    ended = run(place, argv)
    told = f"{name} {how}, {planted.relative_to(place.out)} is a link to {target.relative_to(place.root)}"
    if found := fault(ended, place, codes=ENDINGS):
        return Finding(found, told, shortened(ended))
    return Finding("refused" if ended.code else "done", told, shortened(ended))


def _no_config(name: str, rng: Random, world: World, place: Place) -> Finding:
    """Repeat a command whose folder lacks config.json, as where it was killed before there was one."""
    name = rng.choice([one for one, command in COMMANDS.items() if command.out == ("--out", "out")])
    place.out.mkdir()
    state = rng.choice(["no file", "a temporary file alone", "an empty config.json"])
    if state == "a temporary file alone":
        (place.out / ".config.json.k3j2h1_x.partial").write_text('{"epis', encoding="utf-8")
    elif state == "an empty config.json":
        (place.out / "config.json").touch()
    told, ended = f"{name}, its folder holds {state}", run(place, world.argv(name))
    if ended.code != DONE and fault(ended, place) is None:
        ended = run(place, [*world.argv(name), "--overwrite"])
        told += ", then --overwrite"
    if found := fault(ended, place) or ("not resumed" if ended.code != DONE else None):
        return Finding(found, told, shortened(ended))
    return compared(name, told, world, place)


STRIKES: Sequence[Callable[[str, Random, World, Place], Finding]] = (
    _failing_step,
    _small_files,
    _planted_link,
    _failing_step,
    _few_files,
    _signal,
    _failing_step,
    _little_memory,
    _removed_folder,
    _closed_stdout,
    _failing_step,
    _bad_cache,
    _signal,
    _full_stdout,
    _no_home,
    _left_reader,
    _failing_step,
    _no_config,
    _planted_link,
    _failing_step,
)


def _disturbed(
    name: str,
    told: str,
    prepare: Callable[[], object],
    world: World,
    place: Place,
    *,
    silenced: bool = False,
    anew: bool = False,
) -> Finding:
    ended = run(place, world.argv(name), prepare)
    return _then_repeated(name, told, ended, world, place, silenced=silenced, anew=anew)


def _then_repeated(
    name: str,
    told: str,
    ended: Ended,
    world: World,
    place: Place,
    *,
    codes: Sequence[int] = ENDINGS,
    silenced: bool = False,
    anew: bool = False,
) -> Finding:
    """Return what a disturbed command did; where it failed, it must work when it is repeated."""
    if found := fault(ended, place, codes=codes, silenced=silenced):
        return Finding(found, told, shortened(ended))
    if ended.code == DONE:
        return compared(name, told, world, place)
    finding = repeated(name, f"{told}, then repeated", world, place, anew=anew)
    return Finding("refused", told, shortened(ended)) if finding.verdict == "equal" else finding


def _resumable(name: str, world: World) -> bool:
    return any(CHECKPOINT.search(step) for step in world.reference(name).steps)
