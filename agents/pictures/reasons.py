"""An explanation in words of the groups that a plan spared and of those that gave most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunegym.agents.pictures.plan_bars import shares
from prunegym.agents.pictures.ranks import rank_correlation
from prunegym.envs.results import PlainPlan

MIN_DIFFERENCE = 0.05  # from uniform pruning, as a share of a group's units, for a group to be counted
MAX_GROUPS_NAMED = 3  # of those spared, and of those that gave more
MIN_GROUPS_FOR_CORRELATION = 5  # with fewer, a rank correlation says nothing
STRONG_CORRELATION = 0.5  # absolute rank correlation


def reasons(groups: Sequence[Mapping[str, Any]], uniform: PlainPlan, learned: PlainPlan) -> list[str]:
    """Explain a plan in at most eight lines: the groups it spared, those that gave most, and why.

    Each line names the explanation that holds for its group, if any. The error curve explains a group that
    was spared and whose readers lose more than the median group's, or that gave more and whose readers lose
    less. The share of the MACs explains a group that was spared and is among the smallest third, or that gave
    more and is among the largest third.

    Args:
        groups: the groups in order, at least one, each with "name", "macs_share" (the share of the dense MACs
            that is saved without the group) and "errors" (the shares of its readers' output variance lost at
            25, 50 and 75 %).
        uniform: the plan to compare with.
        learned: the plan to explain.
    """
    names = [group["name"] for group in groups]
    taken, taken_by_uniform = (np.sum(shares(names, plan), axis=0) for plan in (learned, uniform))
    excess = taken - taken_by_uniform  # [groups]; negative: spared
    spared = [int(index) for index in np.argsort(excess, kind="stable") if excess[index] < -MIN_DIFFERENCE]
    gave = [int(index) for index in np.argsort(-excess, kind="stable") if excess[index] > MIN_DIFFERENCE]
    if not spared and not gave:
        return [
            f"In no group does the plan differ from uniform by more than {MIN_DIFFERENCE:.0%} of the units."
        ]
    lines = [
        f"Of {len(groups)} groups, {len(spared)} give less than under the uniform plan and {len(gave)} give "
        f"more, by over {MIN_DIFFERENCE:.0%} of their units."
    ]
    summaries = _GroupSummaries(groups)
    for verb, indices in (("was spared", spared[:MAX_GROUPS_NAMED]), ("gave more", gave[:MAX_GROUPS_NAMED])):
        for index in indices:
            amounts = f"{taken[index]:.0%} of its units, uniform {taken_by_uniform[index]:.0%}"
            lines.append(
                f"{names[index]} {verb}: {amounts}. {summaries.explain(index, spared=excess[index] < 0)}"
            )
    return lines + summaries.overall(excess)


class _GroupSummaries:
    """Properties of the groups that do not depend on a plan: error curves and shares of the MACs."""

    def __init__(self, groups: Sequence[Mapping[str, Any]]) -> None:
        self._errors = np.array([group["errors"] for group in groups], dtype=np.float64)
        self._macs = np.array([group["macs_share"] for group in groups], dtype=np.float64)
        self._error_places = places(self._errors[:, 1])
        self._macs_places = places(self._macs)

    def explain(self, index: int, *, spared: bool) -> str:
        """Return a group's properties in words, and say which of them explains the decision, if any."""
        count = len(self._macs)
        place, size = self._error_places[index], self._macs_places[index]
        curve = " / ".join(f"{100 * error:.1f}" for error in self._errors[index])
        summaries = (
            f"at 25 / 50 / 75% its readers lose {curve}% of their output variance ({_highest(place)} of "
            f"{count}); it has {self._macs[index]:.1%} of the MACs ({_highest(size)})"
        )
        middle = (count + 1) / 2
        by_curve = place < middle if spared else place > middle
        by_macs = size > count * 2 / 3 if spared else size <= count / 3
        if by_curve:
            return f"{'It is sensitive' if spared else 'It takes pruning well'}: {summaries}."
        if by_macs:
            gain = "sparing it costs little of the budget" if spared else "pruning it saves much"
            return f"Its error curve does not explain it, but {gain}: {summaries}."
        return f"Its error curve does not explain it, nor does its share of the MACs: {summaries}."

    def overall(self, excess: NDArray[np.float64]) -> list[str]:
        """Return a line on how well the error curves explain the whole plan, if there are enough groups.

        Args:
            excess: [groups], the shares of units that the plan takes beyond uniform pruning.
        """
        losses = self._errors[:, 1]
        correlation = rank_correlation(excess, losses)
        if len(excess) < MIN_GROUPS_FOR_CORRELATION or correlation is None:
            return []
        conclusion = "the error curves explain little of the plan"
        if abs(correlation) >= STRONG_CORRELATION:
            conclusion = (
                "sensitive groups were spared"
                if correlation < 0
                else "sensitive groups gave more, which their error curves do not explain"
            )
        return [
            f"Over all groups, what they give beyond uniform and their loss at 50% have a rank correlation "
            f"of {correlation:+.2f}: {conclusion}."
        ]


def places(values: NDArray[np.float64]) -> list[int]:
    """Return each value's place in descending order, from 1; equal values share the better place."""
    return [int((values > value).sum()) + 1 for value in values]


def _highest(place: int) -> str:
    """Return a place in words: "highest", "2nd highest", ..."""
    if place == 1:
        return "highest"
    ending = "th" if 10 <= place % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{ending} highest"
