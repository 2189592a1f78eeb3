"""Every evaluated plan by what it costs and what it scores, and which of them no other beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prunegym.agents.episode_log import Episode
from prunegym.agents.pictures.canvas import in_percent, limits, new_axes, score_axis, styles
from prunegym.agents.pictures.scores import maker, network, scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIN_MACS_SPAN, MIN_SCORE_SPAN = 0.002, 0.02  # spans: smaller differences are not blown up to look like much
SEVERAL_BUDGETS = 0.05  # span of MACs from which on plans are of several budgets, and far scores no accident
LABEL_GAP = 0.055  # between labels, of the axis' height
MARK = "#F0E442"
PLAN = 24.0  # size of a plan's mark, in points squared
OPAQUE, FAINT = 0.7, 0.2  # of a plan's mark

Point = tuple[float, float]  # (MACs as a share of the dense network, score)


def front(points: Sequence[Point]) -> list[int]:
    """Return the indices of the points that no other dominates, the cheapest first.

    A point dominates another if it has no more MACs and no lower score, and is not equal to it.

    Example:
        >>> front([(0.5, 0.8), (0.4, 0.7), (0.45, 0.6)])
        [1, 0]
    """
    found: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        if not found or points[index][1] > points[found[-1]][1] or points[index] == points[found[-1]]:
            found.append(index)
    return found


def pareto_figure(
    episodes: Sequence[Episode],
    marked: Mapping[str, Point] | None = None,
    dense_accuracy: float | None = None,
) -> Figure:
    """Draw score against MACs of every evaluated plan, coloured by who made it, each network's front joined.

    Plans far from all others of their budget are drawn hollow at the edge, so that they do not squeeze the
    others together. Estimates are faint, and never on the front.

    Args:
        episodes: at least one.
        marked: name -> point, of plans to be named; where the y axis is accuracy, theirs on test images.
        dense_accuracy: of the dense network on test images, a line; None draws none.
    """
    found, accuracy = scores(episodes)
    points = [(episode.result.macs, score) for episode, score in zip(episodes, found, strict=True)]
    marked = marked or {}
    figure, axes = new_axes(8.0, 4.8)
    named = list(marked.values())
    left, right = limits(
        [macs for macs, _ in points], inside=[macs for macs, _ in named], least=MIN_MACS_SPAN
    )
    axes.set_xlim(left, right)
    full = [(point, one) for point, one in zip(points, episodes, strict=True) if not one.result.estimated]
    best = found if right - left > SEVERAL_BUDGETS else [max(point[1] for point, _ in full)] if full else []
    axes.set_ylim(limits(found, inside=[*best, *(score for _, score in named)], least=MIN_SCORE_SPAN))
    if dense_accuracy is not None:
        _draw_dense_(axes, dense_accuracy)
    outside = _draw_points_(axes, np.array(points), episodes)
    for name in dict.fromkeys(network(one) for _, one in full):
        _draw_front_(axes, [point for point, one in full if network(one) == name])
    _draw_marks_(axes, marked, accuracy=accuracy)
    notes = _notes(outside, estimated=len(points) - len(full))
    axes.set_xlabel("\n".join(["MACs that remain, share of the dense network", *notes]))
    in_percent(axes.xaxis)
    score_axis(axes, accuracy=accuracy)
    on_test = "reported, on test images" if accuracy else "reported"
    _draw_legend_(figure, [maker(episode) for episode in episodes], on_test if marked else None)
    return figure


def _notes(outside: int, *, estimated: int) -> list[str]:
    notes = [
        (outside, "of the plans lie farther out: hollow, at the edge"),
        (estimated, "of the plans are estimated from some of the images: faint, and not on the front"),
    ]
    return [f"{count} {note}" for count, note in notes if count]


def _draw_front_(axes: Axes, points: Sequence[Point]) -> None:
    best = np.array([points[index] for index in front(points)])
    axes.step(*best.T, where="post", color="black", linewidth=1.0, zorder=2.5)
    axes.scatter(best[:, 0], best[:, 1], s=60, facecolors="none", edgecolors="black", zorder=4)


def _draw_points_(axes: Axes, points: NDArray[np.float64], episodes: Sequence[Episode]) -> int:
    """Draw the points, those outside the limits hollow at the edge; return how many those are."""
    from matplotlib.colors import to_rgb

    low, high = (np.array(ends) for ends in zip(axes.get_xlim(), axes.get_ylim(), strict=True))
    outside = ((points < low) | (points > high)).any(axis=1)
    macs, found = points.clip(low, high).T
    makers = np.array([maker(episode) for episode in episodes])
    alpha = np.array([FAINT if episode.result.estimated else OPAQUE for episode in episodes])
    for name, (colour, shape) in styles(makers).items():
        for hollow in (False, True):
            where = (outside == hollow) & (makers == name)
            ink = [(*to_rgb(colour), opacity) for opacity in alpha[where]]
            axes.scatter(
                macs[where],
                found[where],
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
    """Draw the dense network's line; where it is so far above that it would squeeze the rest, say so."""
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
    heights = spread([(marked[name][1] - low) / (high - low) for name in names], least=LABEL_GAP)
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


def spread(heights: Sequence[float], *, least: float) -> list[float]:
    """Return ascending heights moved apart to at least `least`, about as far up as down."""
    raised: list[float] = []
    for height in heights:
        raised.append(max(height, raised[-1] + least) if raised else height)
    lowered: list[float] = []
    for height in reversed(heights):
        lowered.append(min(height, lowered[-1] - least) if lowered else height)
    return [(up + down) / 2 for up, down in zip(raised, reversed(lowered), strict=True)]


def _draw_legend_(figure: Figure, makers: Sequence[str], star: str | None) -> None:
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
