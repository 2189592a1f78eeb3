"""Common parts of the figures: size, colours, limits of an axis, and conversion to pixels.

Matplotlib is imported late, in the functions that draw, here and in the figures' modules; see
docs/decisions.md, D62.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

DPI = 144  # sharp on a page and on paper, a few tens of kilobytes a figure
HEADROOM = 0.06  # of an axis' span, left free on both sides
MAX_OUTLYING_IQRS = 3.0  # interquartile ranges from the quartiles; values farther out are drawn at the edge


class Style(NamedTuple):
    """Colour and shape of the marks for the plans of one method."""

    colour: str
    marker: str


# Okabe and Ito's colours, which colour-blind people can distinguish, and shapes for print without colour
PALETTE = [
    *(Style("#0072B2", "o"), Style("#D55E00", "s"), Style("#009E73", "^")),
    *(Style("#CC79A7", "D"), Style("#56B4E9", "v"), Style("#E69F00", "P")),
]
BASELINES = {"random": Style("#707070", "X"), "uniform": Style("#000000", "o")}


def styles(makers: Iterable[str]) -> dict[str, Style]:
    """Return a style for each method, in order of first appearance; those of BASELINES are fixed."""
    distinct = list(dict.fromkeys(makers))
    learners = [maker for maker in distinct if maker not in BASELINES]
    assigned = {maker: PALETTE[index % len(PALETTE)] for index, maker in enumerate(learners)}
    return {maker: BASELINES.get(maker) or assigned[maker] for maker in distinct}


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure, its size in inches, and its axes, without a frame above and to the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E3E3E3", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def limits(values: Sequence[float], *, inside: Iterable[float], min_span: float) -> tuple[float, float]:
    """Return an axis' limits that leave out values far from the others, which would squeeze these together.

    Args:
        values: the values on the axis, at least one.
        inside: further values that must lie within the limits.
        min_span: the smallest distance between the limits, in the unit of the values.
    """
    lower, upper = np.quantile(values, (0.25, 0.75))
    reach = MAX_OUTLYING_IQRS * (upper - lower)
    shown = [value for value in values if lower - reach <= value <= upper + reach] + list(inside)
    low, high = min(shown), max(shown)
    margin = max(HEADROOM * (high - low), (min_span - (high - low)) / 2)
    return low - margin, high + margin


def score_axis(axes: Axes, *, accuracy: bool) -> None:
    """Label the y axis: accuracy on the reward images, in percent, or else the reward."""
    axes.set_ylabel("accuracy on reward images" if accuracy else "reward")
    if accuracy:
        in_percent(axes.yaxis)


def in_percent(axis: Axis) -> None:
    """Format ticks that are shares as percent, with no more digits than necessary."""
    axis.set_major_formatter(lambda share, _: f"{100 * share:.6g}%")


def figure_pixels(figure: Figure) -> NDArray[np.uint8]:
    """Draw a figure and return its pixels, [height, width, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Return a picture, [height, width, 3], as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png", optimize=True)
    return file.getvalue()
