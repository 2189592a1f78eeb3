"""The campaign: all cases of all kinds, each finding kept at once, so that an ended campaign goes on."""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from prunegym.scripts.benchmarks.faults import inputs, kills, machine, records
from prunegym.scripts.benchmarks.faults.children import Place, import_everything
from prunegym.scripts.benchmarks.faults.findings import Findings, failures, table
from prunegym.scripts.benchmarks.faults.page import write_page
from prunegym.scripts.benchmarks.faults.verdicts import Finding
from prunegym.scripts.benchmarks.faults.world import World
from prunegym.scripts.benchmarks.results import available_cores, each_result
from prunegym.scripts.options.benchmark import BenchmarkConfig
from prunegym.scripts.options.parser import UsageError
from prunegym.scripts.tables import print_note, print_table

SIDE_BY_SIDE = 2  # commands at a time, at most
TOLD_EVERY = 50  # cases
PREFIX = "prunegym-faults-"  # of its folder among the temporary files


class Kind(NamedTuple):
    """A kind of attack: how many cases it has, and what runs one.

    `attack` gets the number of the case, what draws its details, what all cases share, and its own folders.
    Numbers that follow each other attack different things, so that the first few are a fair share.
    """

    cases: int
    attack: Callable[[int, Random, World, Place], Finding]


KINDS: Mapping[str, Kind] = {
    "kills": Kind(kills.CASES, kills.attack),
    "machine": Kind(machine.CASES, machine.attack),
    "inputs": Kind(inputs.CASES, inputs.attack),
    "records": Kind(records.CASES, records.attack),
}


def measure(config: BenchmarkConfig) -> dict[str, Any]:
    """Return the finding of each case; each is kept as it comes.

    Raises:
        UsageError: there is no such case, or the file of results holds something else.
    """
    if config.only is not None:
        return _measure_one(config.only, config.seed)
    kept, names = Findings(config), case_names(config.share)
    import_everything()
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        run = partial(run_case, World(Path(folder) / "world"), config.seed)
        missing = [(name,) for name in names if name not in kept.cases]
        workers = min(SIDE_BY_SIDE, available_cores())
        for (name,), finding in each_result(missing, run, processes=workers, progress=config.progress):
            kept.add(name, finding)
            if config.progress and len(kept.cases) % TOLD_EVERY == 0:
                failed = len(failures({"cases": kept.cases}))
                print(f"{len(kept.cases)} of {len(names)} cases, {failed} failed", file=sys.stderr)
    record = {"seed": config.seed, "cases": kept.cases}
    if config.table is not None:
        write_page(config.table, record)
    return record


def _measure_one(name: str, seed: int) -> dict[str, Any]:
    if name not in case_names():
        counts = ", ".join(f"{kind}/0 to {kind}/{one.cases - 1}" for kind, one in KINDS.items())
        raise UsageError(f"there is no case {name}; there are {counts}")
    import_everything()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    finding = run_case(World(folder / "world"), seed, name, keep=True)
    return {"seed": seed, "cases": {name: finding}, "folder": str(folder)}


def case_names(share: float = 1.0) -> list[str]:
    """Return the names of a share of all cases, such as kills/17; the kinds take turns."""
    found = [
        (number / kind.cases, f"{name}/{number}")
        for name, kind in KINDS.items()
        for number in range(math.ceil(share * kind.cases))
    ]
    return [name for _, name in sorted(found)]


def run_case(world: World, seed: int, name: str, *, keep: bool = False) -> dict[str, Any]:
    """Run a case in folders of its own, which go when it is over, and return its finding as plain data."""
    kind, _, number = name.partition("/")
    place = Place(world.folder.parent / "cases" / name.replace("/", "-")).prepared()
    try:
        finding = KINDS[kind].attack(int(number), Random(f"{seed} {name}"), world, place)
    except Exception:
        finding = Finding("broken case", name, traceback.format_exc())
    if not keep:
        shutil.rmtree(place.root, ignore_errors=True)
    return finding.to_dict()


def show(record: Mapping[str, Any]) -> None:
    """Print how many cases of each kind came to each verdict, and those that failed."""
    headings, *rows = table(record)
    print_table(f"cases, seed {record['seed']}", headings, rows)
    alone = record["cases"] if "folder" in record else {}
    for name, finding in {**failures(record), **alone}.items():
        said = f": {finding['said']}" if finding["said"] else ""
        print_note(f"{name} {finding['verdict']}: {finding['attack']}{said}")
    if alone:
        print(f"what it printed and wrote is kept in {record['folder']}")
