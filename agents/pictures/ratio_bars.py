"""The bar chart of the shares of each group's units that a plan removes and skips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prunegym.agents.pictures.canvas import in_percent, new_axes
from prunegym.envs.results import PlainPlan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW = 0.24  # inches for a group
PALE, STATIC, RUNTIME = "#CFCFCF", "#0072B2", "#E69F00"


def ratio_bars_figure(
    groups: Sequence[str], uniform: PlainPlan, chosen: PlainPlan, *, name: str = "learned"
) -> Figure:
    """Draw, for each group, the shares of its units that two plans remove for good and skip at run time.

    The uniform plan is the wide pale bar, the chosen one the narrow bars in front of it. Skipped units are
    drawn as a share of all units, not of the kept ones as the runtime ratio is, so that the bars add up.

    Args:
        groups: names of the groups, the rows from top to bottom; at least one. A plan that does not name a
            group leaves it whole.
        uniform: the plan to compare with.
        chosen: the plan to show.
        name: name of the chosen plan.
    """
    figure, axes = new_axes(8.0, 1.3 + ROW * len(groups))
    rows = np.arange(len(groups))
    static, runtime = shares(groups, chosen)
    axes.barh(rows, sum(shares(groups, uniform)), height=0.84, color=PALE, label="uniform")
    axes.barh(rows, static, height=0.46, color=STATIC, label=f"{name}: removed (static)")
    if runtime.any():
        axes.barh(rows, runtime, 0.46, static, color=RUNTIME, label="skipped for each input (runtime)")
    axes.set_yticks(rows, groups, size=9, parse_math=False)
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1)
    in_percent(axes.xaxis)
    axes.set_xlabel("share of the group's units")
    figure.legend(loc="outside upper left", ncols=3, frameon=False)
    return figure


def shares(groups: Sequence[str], plan: PlainPlan) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the shares of all units that are removed and that are skipped, [groups] each."""
    entries = [plan.get(group, {}) for group in groups]
    static = np.array([entry.get("static_ratio", 0.0) for entry in entries])
    runtime = np.array([entry.get("runtime_ratio", 0.0) for entry in entries])
    return static, (1.0 - static) * runtime
