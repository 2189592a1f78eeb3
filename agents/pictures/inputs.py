"""Figures of a policy that decides for each input: costs, examples, ratios by gate and learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prunegym.agents.pictures.canvas import DPI, PALETTE, in_percent, new_axes
from prunegym.agents.pictures.plan_bars import ROW
from prunegym.agents.pictures.ranks import rank_correlation, ranks
from prunegym.envs.results import PlainPlan
from prunegym.pruning.errors import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

WIDTH = 8.0  # inches
N_BARS = 40  # of the histogram
MIN_MACS_SPAN = 0.01  # of the histogram, so that tiny differences of cost do not fill it
N_BINS = 8  # of inputs, by difficulty
LOW, HIGH = 0.1, 0.9  # quantiles between which a band is drawn
N_WINDOWS = 40  # in a round: a thick line is the mean over a window
MAX_IMAGE, GAP, LABEL = 0.95, 0.15, 0.25  # inches: size of an image, between images, for the label above one
BLACK, PALE, DASHED = "#000000", "#9CC7E3", (0, (5, 4))
MACS = "MACs, share of dense"


def inputs_figure(macs: Floats, *, budget: float) -> Figure:
    """Draw a histogram of the inputs' costs, with their mean and the budget.

    Args:
        macs: [inputs], shares of the dense network's multiply-adds; at least one.
        budget: the share that inputs may cost on average.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_axes(WIDTH, 3.4)
    low, high, mean = float(macs.min()), float(macs.max()), float(macs.mean())
    margin = max(0.0, MIN_MACS_SPAN - (high - low)) / 2
    axes.hist(macs, N_BARS, range=(low - margin, high + margin), color=PALETTE[0].colour, alpha=0.75)
    axes.axvline(mean, color=BLACK, linewidth=1.8, label=f"mean {mean:.1%}")
    axes.axvline(budget, color=PALETTE[1].colour, linewidth=1.8, linestyle=DASHED, label=_named(budget))
    in_percent(axes.xaxis)
    axes.set_xlabel("MACs that an input took, share of the dense network")
    axes.set_ylabel("inputs")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    figure.legend(loc="outside upper left", ncols=2, frameon=False)
    return figure


def difficulty_figure(macs: Floats, difficulty: Floats, right: NDArray[np.bool_]) -> Figure:
    """Draw the inputs' costs against their difficulty, with right and wrong answers in different colours.

    The x axis shows ranks, as the losses of most inputs are close to 0 and would overlap; its ticks show the
    losses too.

    Args:
        macs: [inputs], shares of the dense network's multiply-adds; at least one.
        difficulty: [inputs], the loss of each under a plan that treats all alike.
        right: [inputs], True if the network's answer is right.
    """
    figure, axes = new_axes(WIDTH, 4.4)
    rank_shares = ranks(difficulty) / len(macs)
    for name, mask, style in (("right", right, PALETTE[0]), ("wrong", ~right, PALETTE[1])):
        axes.scatter(
            rank_shares[mask], macs[mask], 11, style.colour, marker=style.marker, alpha=0.45, linewidths=0
        )
        axes.scatter([], [], 30, style.colour, marker=style.marker, label=f"{name} ({mask.sum()})")
    correlation = rank_correlation(difficulty, macs)
    agreement = "no rank correlation" if correlation is None else f"rank correlation {correlation:+.2f}"
    bins = (rank_shares * N_BINS).astype(int)  # by rank, so that equal difficulties share a bin
    means = [(rank_shares[bins == index].mean(), macs[bins == index].mean()) for index in np.unique(bins)]
    axes.plot(*np.array(means).T, "o-", color=BLACK, label=f"mean of each eighth; {agreement}")
    shares = np.linspace(0.0, 1.0, 5)
    losses = np.quantile(difficulty, shares)
    axes.set_xticks(shares, [f"{share:.0%}\n{loss:.2g}" for share, loss in zip(shares, losses, strict=True)])
    axes.set_xlabel("inputs that are easier; below, the loss there if each gate skips as the fixed plan says")
    in_percent(axes.yaxis)
    axes.set_ylabel(MACS)
    figure.legend(loc="outside upper left", ncols=3, frameon=False)
    return figure


def examples_figure(images: NDArray[np.uint8], macs: Floats) -> Figure:
    """Draw the cheapest inputs above the dearest, each with its cost.

    Args:
        images: [2, K, H, W, C], the cheapest and the dearest; C is 1, grey, or 3.
        macs: [2, K], shares of the dense network's multiply-adds.
    """
    count, height, width = images.shape[1:4]
    image_width = min(MAX_IMAGE, (WIDTH - 1.0) / count - GAP)
    image_height = image_width * height / width
    size = (1.0 + count * (image_width + GAP), 2 * (image_height + LABEL + GAP))
    figure, axes = new_axes(*size)
    # enlarged pixels stay sharp
    interpolation = "antialiased" if width > image_width * DPI else "nearest"
    for row, name in enumerate(("cheapest", "dearest")):
        bottom = (1 - row) * (image_height + LABEL + GAP)
        axes.text(0.9, bottom + image_height / 2, name, ha="right", va="center", size=10)
        for column, share in enumerate(macs[row]):
            left = 1.0 + column * (image_width + GAP)
            axes.imshow(
                np.broadcast_to(images[row, column], (height, width, 3)),
                extent=(left, left + image_width, bottom, bottom + image_height),
                interpolation=interpolation,
            )
            axes.text(
                left + image_width / 2, bottom + image_height + 0.04, f"{share:.1%}", ha="center", size=8
            )
    axes.axis("off")
    axes.set_xlim(0, size[0])
    axes.set_ylim(-GAP / 2, size[1] - GAP / 2)
    return figure


def ratios_figure(gates: Sequence[str], ratios: Floats, fixed: PlainPlan) -> Figure:
    """Draw the mean and the middle four fifths of each gate's runtime ratios, with those of the fixed plan.

    Args:
        gates: names of the gates, the rows from top to bottom; at least one.
        ratios: [inputs, gates].
        fixed: the plan that treats all inputs alike; gates that it does not name have no mark.
    """
    figure, axes = new_axes(WIDTH, 1.3 + ROW * len(gates))
    rows = np.arange(len(gates))
    low, high = np.quantile(ratios, (LOW, HIGH), axis=0)
    axes.barh(rows, high - low, 0.6, low, color=PALE, label="four fifths of the inputs")
    axes.scatter(ratios.mean(axis=0), rows, 26, PALETTE[0].colour, zorder=3, label="mean")
    known = [row for row, gate in enumerate(gates) if gate in fixed]
    planned = [fixed[gates[row]].get("runtime_ratio", 0.0) for row in known]
    if known:
        axes.scatter(planned, known, 70, BLACK, marker="|", linewidths=1.6, zorder=4, label="fixed plan")
    axes.set_yticks(rows, [printable(gate) for gate in gates], size=9, parse_math=False)
    axes.set_ylim(len(gates) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(left=0)
    in_percent(axes.xaxis)
    axes.set_xlabel("runtime ratio: share of the group's remaining units that is skipped")
    figure.legend(loc="outside upper left", ncols=3, frameon=False)
    return figure


def learning_figure(updates: Sequence[Mapping[str, float]], *, budget: float | None) -> Figure:
    """Draw the curves of agreement with the dense network and of MACs while a policy is learned.

    Args:
        updates: one or more updates in order, each with "round", "episodes" (inputs so far in that round),
            and "agrees" and "macs", means over its inputs.
        budget: share of the dense network's multiply-adds, drawn as a line; None draws none.
    """
    figure, upper = new_axes(WIDTH, 4.6)
    grid = figure.add_gridspec(2)
    upper.set_subplotspec(grid[0])
    lower = figure.add_subplot(grid[1], sharex=upper)
    lower.spines[["top", "right"]].set_visible(False)
    lower.grid(color="#E3E3E3", linewidth=0.6)
    upper.tick_params(labelbottom=False)
    rounds = np.array([update["round"] for update in updates])
    starts = np.flatnonzero(np.diff(rounds)) + 1
    episodes = np.array([update["episodes"] for update in updates])
    episodes_before = np.zeros(len(updates))
    episodes_before[starts] = episodes[starts - 1]
    seen = episodes + np.cumsum(episodes_before)
    for axes, key, style in ((upper, "agrees", PALETTE[0]), (lower, "macs", PALETTE[1])):
        _draw_curve_(axes, seen, np.array([update[key] for update in updates]), starts, style.colour)
    if budget is not None:
        lower.axhline(budget, color=BLACK, linewidth=1.1, linestyle=DASHED, label=_named(budget))
        figure.legend(loc="outside upper right", frameon=False)
    if len(starts):
        _name_rounds_(upper, rounds[[0, *starts]], [0.0, *seen[starts - 1]])
    upper.set_ylabel("agrees with dense")
    lower.set_ylabel(MACS)
    lower.set_xlabel("inputs seen")
    lower.xaxis.set_major_formatter("{x:,.0f}")
    lower.set_xlim(left=0)
    return figure


def _draw_curve_(axes: Axes, seen: Floats, values: Floats, starts: NDArray[np.intp], colour: str) -> None:
    """Draw the updates as a thin line and their running mean as a thick one; both break between rounds."""
    for part in np.split(np.arange(len(seen)), starts):
        axes.plot(seen[part], values[part], color=colour, linewidth=0.8, alpha=0.4)
        # over a window around each value, shorter at the ends
        window = np.ones(1 + len(part) // N_WINDOWS)
        counts = np.convolve(np.ones(len(part)), window, "same")
        running_mean = np.convolve(values[part], window, "same") / counts
        axes.plot(seen[part], running_mean, color=colour, linewidth=1.8)
    for start in starts:
        axes.axvline(seen[start - 1], color="#555555", linewidth=0.9, linestyle=":")
    in_percent(axes.yaxis)


def _name_rounds_(axes: Axes, rounds: Floats, starts: Sequence[float]) -> None:
    """Write each round's number above its start, and "round" to the left of them."""
    above = axes.get_xaxis_transform()
    for round_number, start in zip(rounds, starts, strict=True):
        axes.annotate(f"{round_number:g}", (start, 1.0), (3, 2), above, "offset points", size=9)
    axes.annotate("round", (0.0, 1.0), (-3, 2), "axes fraction", "offset points", size=9, ha="right")


def _named(budget: float) -> str:
    return f"budget {budget:.1%}"
