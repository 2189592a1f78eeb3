"""What an episode is judged by in the pictures, and whose it is."""

from __future__ import annotations

from collections.abc import Sequence

from prunegym.agents.episode_log import Episode


def scores(episodes: Sequence[Episode]) -> tuple[list[float], bool]:
    """Return what each episode is judged by, and whether that is the accuracy on the reward images.

    Without labels, in one episode or in all, it is the reward's total.
    """
    accuracies = [episode.result.accuracy for episode in episodes]
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    if len(known) == len(accuracies):
        return known, True
    return [episode.result.total for episode in episodes], False


def network(episode: Episode) -> str:
    """Return the network that an episode's plan is of; "" where the run is of one alone.

    With several, the names of groups begin with the network's, see MultiNetworkEnv.
    """
    return next(iter(episode.result.plan), "").rpartition("/")[0]


def maker(episode: Episode) -> str:
    """Return who made the plan, and for which of several networks."""
    return f"{episode.by}, {network(episode)}" if network(episode) else episode.by
