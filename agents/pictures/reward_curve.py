"""The figure of the best reward so far against the number of evaluations, for each method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prunegym.agents.episode_log import Episode
from prunegym.agents.pictures.canvas import limits, new_axes, styles
from prunegym.agents.pictures.scores import maker

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_REWARD_SPAN = 0.02  # of the y axis


def reward_curve_figure(episodes: Sequence[Episode]) -> Figure:
    """Draw each method's best reward so far against its evaluations, each of which is a faint mark.

    An estimate counts as an evaluation, but is never the best. A method with a single plan is a dashed line.

    Args:
        episodes: one or more episodes.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_axes(8.0, 3.6)
    rewards = [episode.result.total for episode in episodes]
    made: dict[str, list[Episode]] = {}
    for episode in episodes:
        made.setdefault(maker(episode), []).append(episode)
    bests = {name: _best_so_far(by_maker) for name, by_maker in made.items()}
    ends = [best[np.isfinite(best)][[0, -1]] for best in bests.values() if np.isfinite(best).any()]
    low, high = limits(rewards, inside=np.ravel(ends).tolist(), min_span=MIN_REWARD_SPAN)
    for name, style in styles(made).items():
        totals = np.array([episode.result.total for episode in made[name]])
        count = np.arange(1, len(totals) + 1)
        if len(totals) == 1:
            axes.axhline(totals[0], color=style.colour, linewidth=1.1, linestyle=(0, (5, 4)), label=name)
            continue
        axes.step(count, bests[name], where="post", color=style.colour, linewidth=1.8, label=name)
        axes.scatter(
            count, totals.clip(low, high), s=14, marker=style.marker, c=style.colour, alpha=0.5, linewidths=0
        )
    axes.set_xlim(left=0)
    axes.set_ylim(low, high)
    axes.set_xlabel("evaluations spent")
    axes.set_ylabel("reward; line: best so far")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper left", ncols=4, frameon=False)
    return figure


def _best_so_far(episodes: Sequence[Episode]) -> NDArray[np.float64]:
    """Return the best reward after each episode, [episodes]; minus infinity before the first evaluation."""
    evaluated = [-np.inf if episode.result.estimated else episode.result.total for episode in episodes]
    return np.maximum.accumulate(evaluated)
