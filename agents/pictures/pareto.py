"""The figure of all evaluated plans by cost and score, with the Pareto front."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prunegym.agents.episode_log import Episode
from prunegym.agents.pictures.canvas import in_percent, limits, new_axes, score_axis, styles
from prunegym.agents.pictures.scores import maker, network, scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIN_MACS_SPAN, MIN_SCORE_SPAN = 0.002, 0.02  # of the axes, so that tiny differences do not fill them
MULTIPLE_BUDGETS_SPAN = (
    0.05  # of MACs: plans that spread wider are for several budgets, so none is an outlier
)
LABEL_GAP = 0.055  # between labels, as a share of the axis' height
MARK = "#F0E442"
PLAN = 24.0  # area of a plan's mark, in points squared
OPAQUE, FAINT = 0.7, 0.2  # opacity of the marks of evaluated and of estimated plans

Point = tuple[float, float]  # (MACs as a share of the dense network, score)


def front(points: Sequence[Point]) -> list[int]:
    """Return the indices of the points that no other dominates, the cheapest first.

    A point dominates another if it has no more MACs and no lower score, and is not equal to it.

    Example:
        >>> front([(0.5, 0.8), (0.4, 0.7), (0.45, 0.6)])
        [1, 0]
    """
    indices: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        if not indices or points[index][1] > points[indices[-1]][1] or points[index] == points[indices[-1]]:
            indices.append(index)
    return indices


def pareto_figure(
    episodes: Sequence[Episode],
    marked: Mapping[str, Point] | None = None,
    dense_accuracy: float | None = None,
) -> Figure:
    """Draw score against MACs of all evaluated plans, coloured by method, with the front of each network.

    Plans far from all others of their budget are drawn hollow at the edge, so that they do not squeeze the
    others together. Estimates are faint and never on the front.

    Args:
        episodes: one or more episodes.
        marked: name -> point, plans to mark and label; if the y axis is accuracy, their accuracy is that on
            test images.
        dense_accuracy: accuracy of the dense network on test images, drawn as a line; None draws none.
    """
    values, accuracy = scores(episodes)
    points = [(episode.result.shares["macs"], score) for episode, score in zip(episodes, values, strict=True)]
    marked = marked or {}
    evaluated: dict[str, list[Point]] = {}  # by network, without estimates
    for point, episode in zip(points, episodes, strict=True):
        if not episode.result.estimated:
            evaluated.setdefault(network(episode), []).append(point)
    figure, axes = new_axes(8.0, 4.8)
    _set_limits_(axes, points, list(chain.from_iterable(evaluated.values())), list(marked.values()))
    if dense_accuracy is not None:
        _draw_dense_(axes, dense_accuracy)
    n_outside = _draw_points_(axes, np.array(points), episodes)
    _draw_fronts_(axes, evaluated.values())
    _draw_marks_(axes, marked, accuracy=accuracy)
    n_estimated = len(points) - sum(map(len, evaluated.values()))
    label = "MACs that remain, share of the dense network"
    if n_outside:
        label += f"\n{n_outside} of the plans lie farther out: hollow, at the edge"
    if n_estimated:
        label += (
            f"\n{n_estimated} of the plans are estimated from some of the images: faint, and not on the front"
        )
    axes.set_xlabel(label)
    in_percent(axes.xaxis)
    score_axis(axes, accuracy=accuracy)
    on_test = "reported, on test images" if accuracy else "reported"
    _draw_legend_(figure, [maker(episode) for episode in episodes], on_test if marked else None)
    return figure


def _set_limits_(
    axes: Axes, points: Sequence[Point], evaluated: Sequence[Point], marked: Sequence[Point]
) -> None:
    """Set both axes' limits: all marked points are inside, and the best of the evaluated ones."""
    macs, values = zip(*points, strict=True)
    left, right = limits(macs, inside=[point[0] for point in marked], min_span=MIN_MACS_SPAN)
    axes.set_xlim(left, right)
    inside = [point[1] for point in marked]
    if right - left > MULTIPLE_BUDGETS_SPAN:
        inside += values
    elif evaluated:
        inside.append(max(point[1] for point in evaluated))
    axes.set_ylim(limits(values, inside=inside, min_span=MIN_SCORE_SPAN))


def _draw_fronts_(axes: Axes, networks: Iterable[Sequence[Point]]) -> None:
    """Draw a line through the front of each network's points, and a ring around each point on it."""
    for points in networks:
        best = np.array([points[index] for index in front(points)])
        axes.step(*best.T, where="post", color="black", linewidth=1.0, zorder=2.5)
        axes.scatter(best[:, 0], best[:, 1], s=60, facecolors="none", edgecolors="black", zorder=4)


def _draw_points_(axes: Axes, points: NDArray[np.float64], episodes: Sequence[Episode]) -> int:
    """Draw the points, those outside the limits hollow at the edge, and return the number of the latter."""
    from matplotlib.colors import to_rgb

    low, high = (np.array(ends) for ends in zip(axes.get_xlim(), axes.get_ylim(), strict=True))
    outside = ((points < low) | (points > high)).any(axis=1)
    macs, clipped_scores = points.clip(low, high).T
    makers = np.array([maker(episode) for episode in episodes])
    alpha = np.array([FAINT if episode.result.estimated else OPAQUE for episode in episodes])
    for name, (colour, shape) in styles(makers).items():
        for hollow in (False, True):
            where = (outside == hollow) & (makers == name)
            ink = [(*to_rgb(colour), opacity) for opacity in alpha[where]]
            axes.scatter(
                macs[where],
                clipped_scores[where],
                s=PLAN,
                marker=shape,
                facecolors="none" if hollow else ink,
                edgecolors=ink,
                linewidths=1.0 if hollow else 0.0,
                clip_on=False,
                zorder=3,
            )
    return int(outside.sum())


def _draw_dense_(axes: Axes, accuracy: float) -> None:
    """Draw the dense network's line, or only its label if the line is far above all points."""
    low, high = axes.get_ylim()
    name = f"dense {accuracy:.1%}"
    if accuracy > high + (high - low) / 2:
        axes.text(0.995, 0.985, f"{name}, above", transform=axes.transAxes, ha="right", va="top", size=9)
        return
    axes.set_ylim(low, max(high, accuracy + 0.05 * (high - low)))
    axes.axhline(accuracy, color="black", linewidth=0.9, linestyle=(0, (5, 4)), zorder=1.5)
    axes.annotate(
        name, (0.0, accuracy), (3, -3), axes.get_yaxis_transform(), "offset points", va="top", size=9
    )


def _draw_marks_(axes: Axes, marked: Mapping[str, Point], *, accuracy: bool) -> None:
    """Draw the named points as stars, their labels in a column at the right, joined by thin lines."""
    low, high = axes.get_ylim()
    names = sorted(marked, key=lambda name: marked[name][1])
    heights = spread([(marked[name][1] - low) / (high - low) for name in names], min_gap=LABEL_GAP)
    line = {"arrowstyle": "-", "linewidth": 0.6, "color": "#555555", "shrinkA": 0, "shrinkB": 5}
    for name, height in zip(names, heights, strict=True):
        macs, score = marked[name]
        axes.annotate(
            f"{name} {score:.1%}" if accuracy else f"{name} {score:.3f}",
            (macs, score),
            (1.02, height),
            textcoords="axes fraction",
            arrowprops=line,
            va="center",
            annotation_clip=False,
            parse_math=False,
        )
        axes.scatter([macs], [score], s=190, marker="*", c=MARK, edgecolors="black", linewidths=0.9, zorder=5)


def spread(heights: Sequence[float], *, min_gap: float) -> list[float]:
    """Return ascending heights moved apart to at least `min_gap`, about as far up as down."""
    raised: list[float] = []
    for height in heights:
        raised.append(max(height, raised[-1] + min_gap) if raised else height)
    lowered: list[float] = []
    for height in reversed(heights):
        lowered.append(min(height, lowered[-1] - min_gap) if lowered else height)
    return [(up + down) / 2 for up, down in zip(raised, reversed(lowered), strict=True)]


def _draw_legend_(figure: Figure, makers: Sequence[str], star: str | None) -> None:
    """Draw the legend above the axes; `star` is the label of the marked plans, if there are any."""
    from matplotlib.lines import Line2D

    entries = [
        Line2D([], [], color=style.colour, marker=style.marker, linestyle="", label=f"by {name}")
        for name, style in styles(makers).items()
    ]
    entries.append(Line2D([], [], color="black", marker="o", markerfacecolor="none", label="best front"))
    if star:
        entries.append(Line2D([], [], marker="*", linestyle="", markersize=11, label=star))
        entries[-1].set(color=MARK, markeredgecolor="black")
    figure.legend(handles=entries, loc="outside upper left", ncols=5, frameon=False)
