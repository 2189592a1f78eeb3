"""Records that the tool wrote, changed or damaged before a command reads them."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from prunegym.pruning.files.cache import write_cached
from prunegym.pruning.files.state import read_state, write_state
from prunegym.scripts.benchmarks.faults.bad_files import CONTAINERS, Payload, spoiled
from prunegym.scripts.benchmarks.faults.children import Ended, Place, run
from prunegym.scripts.benchmarks.faults.comparing import differences, without_clocks, written
from prunegym.scripts.benchmarks.faults.quick_commands import LEARNING_LITTLE
from prunegym.scripts.benchmarks.faults.verdicts import Finding, fault, shortened
from prunegym.scripts.benchmarks.faults.world import World
from prunegym.scripts.cli import DONE


class Reading(NamedTuple):
    """A record, and a command that reads it; `{dense}` stands for the flags of network and images."""

    source: str  # the command that wrote it
    record: str  # a pattern below the folder where it was run, or that of the cache
    argv: tuple[str, ...] = ()  # none: the source itself, interrupted after a checkpoint and resumed


COMPRESSED = ("--compressed", "out", "--model", "{model}")
EVALUATE = ("evaluate", *COMPRESSED, "--device", "cpu", "--quiet", "--json")
FINETUNE = ("finetune", *COMPRESSED, "--device", "cpu", "--quiet", "--epochs", "1", "--out", "other")
EXPORT = ("export", *COMPRESSED, "--format", "pt2", "--out", "other.pt2")
REPORT = ("report", "out", "--out", "page.html")
BY_POLICY = ("prune", "{dense}", "--policy", "out/policy", "--budget", "macs=0.6", "--out", "other")
FROM_POLICY = (
    "train", "{dense}", "--init-policy", "out/policy", "--budget", "macs=0.6", "--algo", "ppo",
    "--episodes", "4", "--baselines", *LEARNING_LITTLE, "--out", "other",
)  # fmt: skip
LATENCY = ("latency", "--model", "{model}", "--input-size", "1", "8", "8", "--json")
READINGS: Sequence[Reading] = (
    Reading("train ppo", "out/checkpoint/state.safetensors"),
    Reading("prune", "out/compressed/structure.json", EVALUATE),
    Reading("train sac", "out/checkpoint/state.safetensors"),
    Reading("train ppo", "out/policy/policy.json", BY_POLICY),
    Reading("train dyna-ppo", "out/checkpoint/state.safetensors"),
    Reading("train ppo", "out/episodes.jsonl", REPORT),
    Reading("train ppo", "out/episodes.jsonl"),
    Reading("prune", "out/plan.json", ("prune", "{dense}", "--plan", "out/plan.json", "--out", "other")),
    Reading("finetune", "out/checkpoint/state.safetensors"),
    Reading("prune", "out/compressed/model.safetensors", EVALUATE),
    Reading("train ppo", "out/metrics.json", REPORT),
    Reading("train-per-input", "out/checkpoint/round-*/state.safetensors"),
    Reading("latency", "cache/latency-*", LATENCY),
    Reading("train ppo", "out/config.json"),
    Reading("prune", "out/compressed/structure.json", FINETUNE),
    Reading("train ppo", "out/policy/policy.safetensors", BY_POLICY),
    Reading("train-per-input", "out/inputs.npz", REPORT),
    Reading("train amc", "out/checkpoint/state.safetensors"),
    Reading("train ppo", "out/config.json", REPORT),
    Reading("train-per-input", "out/checkpoint/round-*/state.safetensors"),
    Reading("train-per-input", "out/compressed/structure.json", EVALUATE),
    Reading("train ppo", "out/policy/policy.json", FROM_POLICY),
    Reading("train-per-input", "out/updates.jsonl", REPORT),
    Reading("prune", "out/compressed/structure.json", EXPORT),
    Reading("train-per-input", "out/updates.jsonl"),
    Reading("train ppo", "out/plan.json", REPORT),
    Reading("finetune", "out/config.json"),
    Reading("train-per-input", "out/metrics.json", REPORT),
    Reading("train for a range", "out/checkpoint/*"),
    Reading("train cma-es", "out/episodes.jsonl", ("train",)),
)
CASES = 14 * len(READINGS)
VALUES: Sequence[Any] = (
    None, True, -1, 0, 1, 0.5, 1e300, -1e300, float("nan"), float("inf"), 10**400, 2**63, "", "x", "../../x",
    "/etc/passwd", "[/red]", "\x1b[31m\n\0", "\ud800", "9" * 5000, [], {}, [[]], {"": None}, [1e9] * 2000,
)  # fmt: skip
STRICT = (".safetensors", ".npz")  # of files in which no byte may be another


def attack(number: int, rng: Random, world: World, place: Place) -> Finding:
    """Have a command read a record that is not as it was written."""
    reading = READINGS[number % len(READINGS)]
    resumed = not reading.argv
    source = world.interrupted(reading.source) if resumed else world.finished(reading.source)
    world.copied(source, place)
    file = rng.choice(sorted([*place.work.glob(reading.record), *place.root.glob(reading.record)]))
    how = _changed(file, number // len(READINGS), rng, place)
    told = f"{' '.join(_name(reading))}, {file.name} of {reading.source}: {how}"
    ended = run(place, _argv(reading, world))
    if found := fault(ended, place):
        return Finding(found, told, shortened(ended))
    if ended.code != DONE:
        return Finding("refused", told, shortened(ended))
    expected = world.kept(f"reading-{READINGS.index(reading)}", lambda whole: _outcome(reading, world, whole))
    record = str(file.relative_to(place.root))
    other = [name for name in differences(_result(ended, place), expected) if name != record]
    strict = how in (*BYTES, CODE) and file.suffix in STRICT
    verdict = "equal" if not other else "unequal" if strict else "changed"
    return Finding(verdict, told, f"other are {', '.join(other)}" if other else "")


def _name(reading: Reading) -> tuple[str, ...]:
    return reading.argv[:1] or ("--resume",)


def _argv(reading: Reading, world: World) -> list[str]:
    if len(reading.argv) < 2:
        return world.argv(reading.source, repeated=True)
    words = []
    for word in reading.argv:
        words += world.material.flags if word == "{dense}" else [word.format(**world.known)]
    return words


def _outcome(reading: Reading, world: World, whole: Place) -> dict[str, Any]:
    """Return what comes of a reading whose record is as it was written."""
    source = world.finished(reading.source) if reading.argv else world.interrupted(reading.source)
    world.copied(source, whole)
    ended = run(whole, _argv(reading, world))
    assert ended.code == DONE, ended
    return _result(ended, whole)


def _result(ended: Ended, place: Place) -> dict[str, Any]:
    try:
        printed = without_clocks(json.loads(ended.out))
    except ValueError:
        printed = None  # a table, in which clocks stand
    return {**written(place), "printed": printed}


CODE = "code to be unpickled"
BYTES = ("cut short", "a byte flipped", "a pickle", "more at its end", *CONTAINERS)


def _changed(file: Path, number: int, rng: Random, place: Place) -> str:
    """Change a record, and return how."""
    data = file.read_bytes()
    state, cached = file.name == "state.safetensors", file.parent == place.cache
    if number % 3 == 1 and (state or file.suffix == ".npz"):
        file.write_bytes(pickle.dumps(Payload(place)))
        return CODE
    if number % 3 and state:
        record, tensors = read_state(file)
        record, how = _changed_data(record, rng)
        write_state(file, record, tensors)
        return how
    if number % 3 and cached:
        record, how = _changed_data(json.loads(data.partition(b"\n")[2]), rng)
        write_cached(file, json.dumps(record).encode())
        return how
    if number % 3 and file.suffix in (".json", ".jsonl"):
        return _changed_json(file, data, rng)
    how = rng.choice(["a byte flipped"] * len(BYTES) + [*BYTES, "gone", "a folder"])
    if how in ("gone", "a folder"):
        file.unlink()
        if how == "a folder":
            file.mkdir()
    else:
        file.write_bytes(data + bytes(9) if how == "more at its end" else spoiled(data, how, rng, place))
    return how


def _changed_json(file: Path, data: bytes, rng: Random) -> str:
    lines = data.splitlines() if file.suffix == ".jsonl" else [data]
    line = rng.randrange(len(lines))
    record, how = _changed_data(json.loads(lines[line]), rng)
    lines[line] = json.dumps(record).encode().replace(b'"NESTED"', b"[" * 3000 + b"]" * 3000)
    file.write_bytes(b"\n".join(lines) + b"\n")
    return how


def _changed_data(record: Any, rng: Random) -> tuple[Any, str]:
    """Return plain data with another value at one place, or without it, and how it was changed."""
    path = rng.choice(list(_paths(record)))
    shown = ".".join(map(str, path)) or "all of it"
    if path and rng.random() < 0.2:
        return _with(record, path, _GONE), f"{shown} is gone"
    if rng.random() < 0.1:
        return _with(record, path, "NESTED"), f"{shown} is nested deeply"
    value = rng.choice(VALUES)
    return _with(record, path, value), f"{shown} is {ascii(value)[:40]}"


_GONE = object()


def _paths(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each entry of plain data; of long lists, the first and last alone."""
    yield path
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _paths(value, (*path, key))
    elif isinstance(data, list):
        for place in {0, len(data) - 1} if data else ():
            yield from _paths(data[place], (*path, place))


def _with(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return plain data with another value at a path."""
    if not path:
        return value
    data = copy.deepcopy(data)
    parent = data
    for key in path[:-1]:
        parent = parent[key]
    if value is _GONE:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return data
