"""The bar chart of how far a plan compresses each site, in each way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prunegym.agents.pictures.canvas import in_percent, new_axes
from prunegym.agents.pictures.plan_table import compression
from prunegym.envs.results import PlainPlan
from prunegym.pruning.errors import printable
from prunegym.pruning.techniques import TECHNIQUES, techniques_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW = 0.24  # inches for a site
PANEL = 2.2  # inches for each further technique
PALE, STATIC, RUNTIME = "#CFCFCF", "#0072B2", "#E69F00"
OTHERS = ("#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442")  # of further techniques, in turn
WIDTHS = ("gates", "channels")  # techniques whose shares add up


def plan_bars_figure(
    sites: Sequence[str], uniform: PlainPlan, chosen: PlainPlan, *, name: str = "learned"
) -> Figure:
    """Draw, for each site, the shares of its units that two plans remove for good and skip at run time.

    The uniform plan is the wide pale bar, the chosen one the narrow bars in front of it. Skipped units are
    drawn as a share of all units, not of the kept ones as the runtime ratio is, so that the bars add up. Each
    further technique has a panel of its own, in which the axis is how far it compresses, from 0 to 1.

    Args:
        sites: names of the sites, the rows from top to bottom; at least one. A plan that does not name a
            site leaves it whole.
        uniform: the plan to compare with.
        chosen: the plan to show.
        name: name of the chosen plan.
    """
    others = [one for one in techniques_of(uniform, chosen) if one not in WIDTHS]
    figure, axes = new_axes(8.0 + PANEL * len(others), 1.3 + ROW * len(sites))
    grid = figure.add_gridspec(1, 1 + len(others), width_ratios=[8.0, *[PANEL] * len(others)])
    axes.set_subplotspec(grid[0])
    rows = np.arange(len(sites))
    static, runtime = shares(sites, chosen)
    axes.barh(rows, sum(shares(sites, uniform)), height=0.84, color=PALE, label="uniform")
    axes.barh(rows, static, height=0.46, color=STATIC, label=f"{name}: removed (static)")
    if runtime.any():
        axes.barh(rows, runtime, 0.46, static, color=RUNTIME, label="skipped for each input (runtime)")
    axes.set_yticks(rows, [printable(site) for site in sites], size=9, parse_math=False)
    axes.set_ylim(len(sites) - 0.4, -0.6)
    axes.set_xlabel("share of the units of the group")
    _dress_(axes)
    for index, one in enumerate(others):
        panel = figure.add_subplot(grid[1 + index], sharey=axes)
        panel.spines[["top", "right"]].set_visible(False)
        even, mine = np.nan_to_num(compression(sites, [uniform, chosen], one)).T
        panel.barh(rows, even, height=0.84, color=PALE)
        panel.barh(rows, mine, height=0.46, color=OTHERS[index % len(OTHERS)])
        panel.tick_params(axis="y", labelleft=False)
        panel.set_xlabel(TECHNIQUES[one].key.replace("_", " "))
        _dress_(panel)
    figure.legend(loc="outside upper left", ncols=3, frameon=False)
    return figure


def shares(sites: Sequence[str], plan: PlainPlan) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the shares of all units that are removed and that are skipped, [sites] each."""
    entries = [plan.get(site, {}) for site in sites]
    static = np.array([entry.get("static_ratio", 0.0) for entry in entries])
    runtime = np.array([entry.get("runtime_ratio", 0.0) for entry in entries])
    return static, (1.0 - static) * runtime


def _dress_(axes: Axes) -> None:
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1)
    in_percent(axes.xaxis)
