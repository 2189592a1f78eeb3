"""What a run's folder holds so far, as plain data, and the pictures of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.episode_log import Episode
from agents.interface import Plan
from agents.pictures.canvas import figure_pixels
from agents.pictures.heatmap import ratio_heatmap
from agents.pictures.pareto import Point, pareto_figure
from agents.pictures.ratio_bars import ratio_bars_figure
from agents.pictures.reward_curve import reward_curve_figure
from agents.pictures.scores import scores

DENSE, UNIFORM = "dense", "uniform"


@dataclass(frozen=True)
class Run:
    """A run, finished or going on."""

    config: Mapping[str, Any]
    episodes: Sequence[Episode]
    finished: bool = False
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # name -> metrics on test images
    plans: Mapping[str, Plan] = field(default_factory=dict)  # of the rows that are plans
    plan: Plan | None = None  # the one to be carried out, if it is known

    @property
    def is_one_search(self) -> bool:
        """Whether all plans are for one network and one budget, so that they can be compared."""
        one_network = len({tuple(episode.result.plan) for episode in self.episodes}) <= 1
        one_budget = not any(".." in share for share in words(self.config.get("budget")))
        return one_network and one_budget and (not self.rows or DENSE in self.rows)

    @property
    def learner(self) -> str:
        """Who made the plans that the run is about; there is at least one episode."""
        made = Counter(episode.by for episode in self.episodes)
        asked = str(self.config.get("algo"))
        return asked if asked in made else made.most_common(1)[0][0]

    @cached_property
    def chosen(self) -> tuple[str, Plan] | None:
        """The name and the plan that the run chose; while it goes on, the learner's best so far."""
        if not self.is_one_search:
            return None
        last = list(self.rows)[-1] if self.rows else ""
        plan = self.plans.get(last, self.plan)
        if plan is not None:
            return last or "chosen", plan
        mine = [
            episode.result
            for episode in self.episodes
            if episode.by == self.learner and not episode.result.estimated
        ]
        if self.finished or not mine:
            return None
        return "best so far", max(mine, key=lambda result: result.total).plan

    @property
    def uniform(self) -> Plan | None:
        """The uniform plan, if it is known."""
        made = [episode.result.plan for episode in self.episodes if episode.by == UNIFORM]
        return self.plans.get(UNIFORM, made[0] if made else None)

    def marks(self) -> dict[str, Point]:
        """Return the rows' places among the episodes: (share of the dense MACs, score).

        The score is accuracy on test images where the episodes are judged by accuracy; else the reward of the
        episode that had the row's plan.
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
            name: (episode.result.macs, episode.result.total)
            for name, plan in self.plans.items()
            for episode in self.episodes
            if episode.result.plan == plan
        }


def run_pictures(run: Run) -> dict[str, NDArray[np.uint8]]:
    """Return the pictures of a run, each [height, width, 3], by name; those it has the data for.

    "pareto", "reward", "heatmap" and "bars".
    """
    found = {}
    if run.episodes:
        dense = run.rows.get(DENSE, {}).get("accuracy") if scores(run.episodes)[1] else None
        found["pareto"] = figure_pixels(pareto_figure(run.episodes, run.marks(), dense))
        found["reward"] = figure_pixels(reward_curve_figure(run.episodes))
        if run.is_one_search:
            found["heatmap"] = _heatmap(run)
    if run.chosen and run.uniform is not None:
        name, plan = run.chosen
        found["bars"] = figure_pixels(ratio_bars_figure(list(run.uniform), run.uniform, plan, name=name))
    return found


def _heatmap(run: Run) -> NDArray[np.uint8]:
    plans = [episode.result.plan for episode in run.episodes if episode.by == run.learner]
    ratios = [[[one["static_ratio"], one["runtime_ratio"]] for one in plan.values()] for plan in plans]
    return ratio_heatmap(list(plans[0]), np.array(ratios))


def words(value: object) -> list[str]:
    """Return a flag's value, one or several, as text."""
    several = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    return [str(one) for one in several]
