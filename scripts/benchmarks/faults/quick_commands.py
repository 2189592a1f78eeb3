"""Commands that take a second and find nothing wrong, to be given one bad input each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from prunegym.scripts.benchmarks.faults.world import World

LEARNING_LITTLE = ("--hyper", "episodes_per_update=4", "--hyper", "n_epochs=1")
QUICK: Mapping[str, tuple[str, ...]] = {
    "train": ("{dense}", "--episodes", "2", "--baselines", "--algo", "random", "--out", "out"),
    "train-per-input": (
        "{dense}", "--episodes", "40", "--rounds", "1", "--budget", "macs=0.7",
        "--hyper", "n_epochs=1", "--hyper", "episodes_per_update=40", "--out", "out",
    ),
    "prune": ("{dense}", "--out", "out"),
    "finetune": (
        "--compressed", "{compressed}", "--model", "{model}", "--data", "{data}", "--device", "cpu",
        "--epochs", "1", "--quiet", "--out", "out",
    ),
    "export": ("--compressed", "{compressed}", "--model", "{model}", "--out", "out.pt2", "--format", "pt2"),
    "evaluate": ("{dense}",),
    "describe": ("--model", "{model}", "--input-size", "1", "8", "8"),
    "latency": ("--model", "{model}", "--input-size", "1", "8", "8"),
    "report": ("{run}", "--out", "page.html"),
    "benchmark": ("depth", "--assets", "."),
}  # fmt: skip


class Case(NamedTuple):
    """A command line with bad input."""

    told: str  # what is bad
    argv: list[str]
    must_fail: bool = False


def quick(verb: str, world: World) -> list[str]:
    """Return the quick command line of a verb."""
    known = {**world.known, "run": str(world.finished("train random and sensitivity").out)}
    words = [verb]
    for word in QUICK[verb]:
        words += world.material.flags if word == "{dense}" else [word.format(**known)]
    return words
