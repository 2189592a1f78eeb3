"""The data in a run's folder, finished or not, and the pictures made from them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prunegym.agents.episode_log import Episode
from prunegym.agents.pictures.canvas import figure_pixels
from prunegym.agents.pictures.heatmap import plans_heatmap
from prunegym.agents.pictures.inputs import (
    difficulty_figure,
    examples_figure,
    inputs_figure,
    learning_figure,
    ratios_figure,
)
from prunegym.agents.pictures.pareto import Point, pareto_figure
from prunegym.agents.pictures.plan_bars import plan_bars_figure
from prunegym.agents.pictures.reward_curve import reward_curve_figure
from prunegym.agents.pictures.scores import scores
from prunegym.envs.results import PlainPlan
from prunegym.pruning.files.plain_data import parse_json
from prunegym.pruning.machine_failures import raise_machine_failure

DENSE, UNIFORM, FIXED = "dense", "uniform", "fixed"
Update = Mapping[str, float]  # of learning a policy that decides for each input
SHOWN = ("round", "episodes", "macs", "agrees")  # keys of an update that pictures show


class Inputs(NamedTuple):
    """The decisions of a policy that decides for each input, on N test images."""

    macs: NDArray[np.float64]  # [N], shares of the dense network's multiply-adds
    reference: NDArray[np.float64]  # [N], losses under the fixed plan
    right: NDArray[np.bool_]  # [N], True for right answers
    ratios: NDArray[np.float64]  # [N, gates], runtime ratios
    gates: NDArray[np.str_]  # [gates], names
    budget: NDArray[np.float64]  # [], share of the dense network's multiply-adds
    examples: NDArray[np.uint8]  # [2, K, H, W, C], the cheapest and the dearest; C is 1 or 3
    examples_macs: NDArray[np.float64]  # [2, K]


LAYOUT = {  # array name -> its type, and a letter for each dimension; equal letters stand for equal sizes
    **dict.fromkeys(("macs", "reference"), (np.floating, "N")),
    "right": (np.bool_, "N"),
    "ratios": (np.floating, "NG"),
    "gates": (np.str_, "G"),
    "budget": (np.floating, ""),
    "examples": (np.uint8, "2KHWC"),
    "examples_macs": (np.floating, "2K"),
}


@dataclass(frozen=True)
class Run:
    """A run, finished or not."""

    config: Mapping[str, Any]
    episodes: Sequence[Episode]
    finished: bool = False
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # name -> metrics on test images
    plans: Mapping[str, PlainPlan] = field(default_factory=dict)  # of the rows that are plans
    plan: PlainPlan | None = None  # the plan to apply, if it is known
    updates: Sequence[Update] = ()  # of a run that learns to decide for each input
    inputs: Inputs | None = None  # that run's decisions on test images

    @property
    def is_one_search(self) -> bool:
        """True if all plans are for one network and one budget, so that they can be compared."""
        one_network = len({tuple(episode.result.plan) for episode in self.episodes}) <= 1
        one_budget = not any(".." in share for share in words(self.config.get("budget")))
        return one_network and one_budget and (not self.rows or DENSE in self.rows)

    @property
    def learner(self) -> str:
        """Name of the run's main method; there must be at least one episode."""
        counts = Counter(episode.by for episode in self.episodes)
        algorithm = str(self.config.get("algo"))
        return algorithm if algorithm in counts else counts.most_common(1)[0][0]

    @cached_property
    def chosen(self) -> tuple[str, PlainPlan] | None:
        """Name and plan that the run chose; before it has finished, the learner's best plan so far."""
        if not self.is_one_search:
            return None
        last = list(self.rows)[-1] if self.rows else ""
        plan = self.plans.get(last, self.plan)
        if plan is not None:
            return last or "chosen", plan
        evaluated = [
            episode.result
            for episode in self.episodes
            if episode.by == self.learner and not episode.result.estimated
        ]
        if self.finished or not evaluated:
            return None
        return "best so far", max(evaluated, key=lambda result: result.total).plan

    @property
    def uniform(self) -> PlainPlan | None:
        """The uniform plan; None before the run has finished."""
        return self.plans.get(UNIFORM)

    @property
    def macs_budget(self) -> float | None:
        """The budget as a share of the dense multiply-adds, if there is a single one."""
        if self.inputs is not None:
            return float(self.inputs.budget)
        matches = [re.fullmatch(r"macs=(\d*\.?\d+)", share) for share in words(self.config.get("budget"))]
        return next((float(match[1]) for match in matches if match), None)

    def marks(self) -> dict[str, Point]:
        """Return the points of the rows for the Pareto figure: (share of the dense MACs, score).

        The score is the accuracy on test images if that of the episodes is accuracy, else the reward of the
        episode with the row's plan.
        """
        dense = self.rows.get(DENSE)
        if dense is None:
            return {}
        if scores(self.episodes)[1]:
            return {
                name: (row["macs"] / dense["macs"], row["accuracy"])
                for name, row in self.rows.items()
                if name != DENSE and row["accuracy"] is not None
            }
        return {
            name: (episode.result.shares["macs"], episode.result.total)
            for name, plan in self.plans.items()
            for episode in self.episodes
            if episode.result.plan == plan
        }


def run_pictures(run: Run) -> dict[str, NDArray[np.uint8]]:
    """Return the pictures for which a run has the data, name -> pixels, [height, width, 3].

    The names are "pareto", "reward", "heatmap" and "bars"; of a run that decides for each input, "inputs",
    "difficulty", "examples", "ratios" and "learning".
    """
    pictures = {}
    if run.episodes:
        dense = run.rows.get(DENSE, {}).get("accuracy") if scores(run.episodes)[1] else None
        pictures["pareto"] = figure_pixels(pareto_figure(run.episodes, run.marks(), dense))
        pictures["reward"] = figure_pixels(reward_curve_figure(run.episodes))
        if run.is_one_search:
            plans = [episode.result.plan for episode in run.episodes if episode.by == run.learner]
            pictures["heatmap"] = plans_heatmap(list(plans[0]), plans)
    if run.chosen and run.uniform is not None:
        name, plan = run.chosen
        pictures["bars"] = figure_pixels(plan_bars_figure(list(run.uniform), run.uniform, plan, name=name))
    if run.inputs is not None:
        pictures |= _input_pictures(run.inputs, run.plans.get(FIXED, {}))
    if run.updates:
        pictures["learning"] = figure_pixels(learning_figure(run.updates, budget=run.macs_budget))
    return pictures


def _input_pictures(inputs: Inputs, fixed: PlainPlan) -> dict[str, NDArray[np.uint8]]:
    """Return the pictures of the decisions for inputs; `fixed` is the plan that treats all inputs alike."""
    figures = {
        "inputs": inputs_figure(inputs.macs, budget=float(inputs.budget)),
        "difficulty": difficulty_figure(inputs.macs, inputs.reference, inputs.right),
        "examples": examples_figure(inputs.examples, inputs.examples_macs),
        "ratios": ratios_figure(inputs.gates.tolist(), inputs.ratios, fixed),
    }
    return {name: figure_pixels(figure) for name, figure in figures.items()}


def words(value: object) -> list[str]:
    """Return the values of a flag, one, several or none, as text."""
    values = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    return [str(entry) for entry in values]


def read_updates(path: Path) -> list[Update]:
    """Return the updates of a run in order; an empty list if the file does not exist yet.

    Raises:
        ValueError: a line is damaged. A last line that is not JSON is ignored: it is still being written.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    updates: list[Update] = []
    for line_number, line in enumerate(lines, start=1):
        try:
            data = parse_json(line)
            update = {name: float(data[name]) for name in SHOWN}
            if not np.isfinite(list(update.values())).all():
                raise ValueError(f"{update} is not finite")
            updates.append(update)
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            no_json = isinstance(error, (json.JSONDecodeError, UnicodeDecodeError))
            if not no_json or line_number < len(lines):
                raise ValueError(f"line {line_number}: {error!r}") from error
    return updates


def read_inputs(path: Path) -> Inputs:
    """Read the decisions for inputs from an archive of plain arrays.

    Raises:
        ValueError: the archive is damaged or lacks an array, or an array's type or shape is not as in LAYOUT.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in LAYOUT}
    except Exception as error:  # the error depends on where the archive is damaged
        raise_machine_failure(error, reading=path)
        raise ValueError(str(error)) from error
    sizes: dict[str, int] = {}
    for name, (kind, letters) in LAYOUT.items():
        array = arrays[name]
        known = [sizes.setdefault(letter, size) for letter, size in zip(letters, array.shape, strict=False)]
        if not np.issubdtype(array.dtype, kind) or array.ndim != len(letters) or known != list(array.shape):
            raise ValueError(f"{name} is of kind {array.dtype}, shape {array.shape}")
        if not array.size or (kind is np.floating and not np.isfinite(array).all()):
            raise ValueError(f"{name} is empty or not finite")
    if sizes["2"] != 2 or sizes["C"] not in (1, 3):
        raise ValueError(f"examples are of shape {arrays['examples'].shape}")
    return Inputs(**arrays)
