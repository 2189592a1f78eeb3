"""Which groups a plan spared and which gave most, in words, beside what is known to speak for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunegym.agents.pictures.ranks import rank_correlation
from prunegym.agents.pictures.ratio_bars import shares
from prunegym.envs.results import PlainPlan

MIN_DIFFERENCE = 0.05  # of a group's units, more or less than uniform takes
MAX_GROUPS_NAMED = 3  # groups named of each kind
MIN_GROUPS_FOR_CORRELATION = 5  # groups for a rank correlation to say anything
STRONG_CORRELATION = 0.5  # rank correlation


def reasons(groups: Sequence[Mapping[str, Any]], uniform: PlainPlan, learned: PlainPlan) -> list[str]:
    """Say in at most eight lines which groups the plan spared, which gave most, and what explains it.

    Two figures can explain a group, and the line says which does, or that neither does. Its error curve: it
    was spared and its readers lose more than the middle group's, or it gave more and they lose less. Its
    share of the MACs: it was spared and is among the smallest third, or gave more and is among the largest.

    Args:
        groups: in order, each with "name", "macs_share" (of the dense MACs, saved if it vanished) and
            "errors" (share of its readers' output variance lost at 25, 50 and 75 %); at least one.
        uniform: the plan to compare with.
        learned: the plan to explain.
    """
    names = [group["name"] for group in groups]
    taken, even = (np.sum(shares(names, plan), axis=0) for plan in (learned, uniform))
    more = taken - even  # [groups]; below 0: spared
    spared = [int(index) for index in np.argsort(more, kind="stable") if more[index] < -MIN_DIFFERENCE]
    gave = [int(index) for index in np.argsort(-more, kind="stable") if more[index] > MIN_DIFFERENCE]
    if not spared and not gave:
        return [
            f"In no group does the plan differ from uniform by more than {MIN_DIFFERENCE:.0%} of the units."
        ]
    lines = [
        f"Of {len(groups)} groups, {len(spared)} give less than under the uniform plan and {len(gave)} give "
        f"more, by over {MIN_DIFFERENCE:.0%} of their units."
    ]
    summaries = _GroupSummaries(groups)
    for verb, found in (("was spared", spared[:MAX_GROUPS_NAMED]), ("gave more", gave[:MAX_GROUPS_NAMED])):
        for index in found:
            amounts = f"{taken[index]:.0%} of its units, uniform {even[index]:.0%}"
            lines.append(
                f"{names[index]} {verb}: {amounts}. {summaries.explain(index, spared=more[index] < 0)}"
            )
    return lines + summaries.overall(more)


class _GroupSummaries:
    """What is known of the groups before any plan: error curves and shares of the MACs."""

    def __init__(self, groups: Sequence[Mapping[str, Any]]) -> None:
        self._errors = np.array([group["errors"] for group in groups], dtype=np.float64)
        self._macs = np.array([group["macs_share"] for group in groups], dtype=np.float64)
        self._error_places = places(self._errors[:, 1])
        self._macs_places = places(self._macs)

    def explain(self, index: int, *, spared: bool) -> str:
        """Return the summaries about a group, and whether they speak for what was decided."""
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

    def overall(self, more: NDArray[np.float64]) -> list[str]:
        """Return a line on how far the error curves explain the whole plan, if there are enough groups."""
        losses = self._errors[:, 1]
        correlation = rank_correlation(more, losses)
        if len(more) < MIN_GROUPS_FOR_CORRELATION or correlation is None:
            return []
        says = "the error curves explain little of the plan"
        if abs(correlation) >= STRONG_CORRELATION:
            says = (
                "sensitive groups were spared"
                if correlation < 0
                else "sensitive groups gave more, which their error curves do not explain"
            )
        return [
            f"Over all groups, what they give beyond uniform and their loss at 50% have a rank correlation "
            f"of {correlation:+.2f}: {says}."
        ]


def places(values: NDArray[np.float64]) -> list[int]:
    """Return each value's place, the largest 1; equal values share the better one."""
    return [int((values > value).sum()) + 1 for value in values]


def _highest(place: int) -> str:
    """Return "highest", "2nd highest", ..."""
    if place == 1:
        return "highest"
    ending = "th" if 10 <= place % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{ending} highest"
