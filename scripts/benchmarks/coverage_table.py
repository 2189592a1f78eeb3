"""The results of `benchmark coverage` as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prunegym.pruning.files.writing import written_whole
from prunegym.scripts.benchmarks.coverage_subject import RATIO, TOLERANCE

TITLES = {
    "torchvision cnn": "torchvision, CNNs",
    "timm cnn": "timm, CNNs, a small one of each family",
    "prunegym cnn": "built in",
    "torchvision hybrid": "torchvision, CNNs with attention",
    "timm hybrid": "timm, CNNs with attention or recurrence",
    "torchvision transformer": "torchvision, transformers",
    "timm transformer": "timm, transformers and MLPs",
}
COLUMNS = ("network", "px", "groups", "MACs left", "cut = silenced", "refitted", "reloaded")
THEIR_COLUMNS = ("Torch-Pruning runs", "MACs left", "cut = silenced")
NOTES = """
{ratio:.0%} of the units of every prunable group are cut at once, at random, on small images (px) with random
weights; scales and BatchNorm statistics are drawn so that they hide nothing.

- *MACs left*: of the dense network's, by torch's own counter.
- *cut = silenced*: the largest difference from the dense network with the cut channels silenced is at most
  {tolerance:g} of the largest change that silencing makes, in double precision.
- *refitted*: by least squares, on noise; *reloaded*: saved, loaded, the very same output.
- *Torch-Pruning*: `MagnitudePruner` with `GroupMagnitudeImportance(p=2)` and `pruning_ratio={ratio}`; layers
  with as many outputs as there are classes are ignored. It *runs* if the pruned network gives an output of
  the same shape for fewer MACs. Silenced are the inputs that its groups take from convolutions and linear
  layers. It prunes through LayerNorm and GroupNorm, which compute something else when a channel goes: such
  networks run, and do not equal silencing. Attention was not described to it.
"""


def runs(found: Mapping[str, Any] | None) -> bool:
    """Return whether a pruned network runs, gives an output of the same shape, and costs less."""
    return found is not None and "failed" not in found and found["runs"] and found["macs"] < 1


def is_right(found: Mapping[str, Any] | None) -> bool:
    """Return whether it also computes what the dense network does with the cut channels silenced."""
    return runs(found) and found is not None and found["error"] is not None and found["error"] <= TOLERANCE


def is_fully_checked(found: Mapping[str, Any] | None) -> bool:
    """Return whether it was also refitted by least squares, saved, and gave the same after it was loaded."""
    return is_right(found) and found is not None and found["refitted"] and found["reloaded"]


def summary(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line per kind of network: how many passed."""
    for section, names in _sections(record).items():
        ours, theirs = (
            [record[pruner].get(name) for name in names] for pruner in ("prunegym", "torch-pruning")
        )
        line = (
            f"{TITLES[section]}: {sum(map(is_fully_checked, ours))} of {len(names)} fully checked "
            f"(run after pruning: {sum(map(runs, ours))}; equal to silencing: {sum(map(is_right, ours))})"
        )
        if any(theirs):
            equal = sum(map(is_right, theirs))
            line += f"; Torch-Pruning: {sum(map(runs, theirs))} run, {equal} equal to silencing"
        yield line


def _sections(record: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the networks measured so far, by the keys of TITLES."""
    sections: dict[str, list[str]] = {section: [] for section in TITLES}
    for name, kind in record["kinds"].items():
        zoo = name.partition("/")[0] if "/" in name else "prunegym"
        if name in record["prunegym"]:
            sections[f"{zoo} {kind}"].append(name)
    return {section: names for section, names in sections.items() if names}


def write_table(path: Path, record: Mapping[str, Any]) -> None:
    """Write the page: a summary, a table per kind, and why groups are frozen or networks not pruned."""
    with written_whole(path) as temporary:
        temporary.write_text("".join(_page(record)), encoding="utf-8")


def _page(record: Mapping[str, Any]) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items() if version)
    yield "# Which networks can be pruned\n\nWritten by `prunegym benchmark coverage --out coverage.json "
    yield f"--table docs/coverage.md`\n({versions}; seed {record['seed']}).\n\n"
    yield "".join(f"- {line}\n" for line in summary(record))
    yield NOTES.format(ratio=RATIO, tolerance=TOLERANCE)
    headings = (*COLUMNS, *THEIR_COLUMNS)
    for section, names in _sections(record).items():
        yield f"\n## {TITLES[section][0].upper()}{TITLES[section][1:]}\n\n"
        yield from (f"| {' | '.join(cells)} |\n" for cells in (headings, ["---"] * len(headings)))
        for name in names:
            yield _row(name, record["prunegym"][name], record["torch-pruning"].get(name))
        yield from _reasons("Not pruned", names, record["prunegym"])
        yield from _reasons("Not pruned by Torch-Pruning", names, record["torch-pruning"])


def _row(name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any] | None) -> str:
    cells = [name.partition("/")[2] or name]
    if "failed" in ours:
        cells += ["", "none", "", "", "", ""]
    else:
        marks = (is_right(ours), ours["refitted"], ours["reloaded"])
        cells += [str(ours["side"]), str(ours["groups"]), f"{ours['macs']:.0%}", *map(_mark, marks)]
    if theirs is None:
        cells += ["", "", ""]
    else:
        share = f"{theirs['macs']:.0%}" if runs(theirs) else ""
        cells += [_mark(runs(theirs)), share, _mark(is_right(theirs))]
    return f"| {' | '.join(cells)} |\n"


def _mark(passed: bool) -> str:
    return "yes" if passed else "no"


def _reasons(title: str, names: list[str], found: Mapping[str, Any]) -> Iterator[str]:
    failed = {name: found[name]["failed"] for name in names if "failed" in found.get(name, {})}
    if failed:
        yield f"\n{title}:\n\n"
        yield "".join(f"- {name.partition('/')[2] or name}: {why}\n" for name, why in failed.items())
