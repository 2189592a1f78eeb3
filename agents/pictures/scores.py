"""The score, the network and the maker of an episode, as the pictures show them."""

from __future__ import annotations

from collections.abc import Sequence

from prunegym.agents.episode_log import Episode


def scores(episodes: Sequence[Episode]) -> tuple[list[float], bool]:
    """Return the score of each episode, and whether that is the accuracy on the reward images.

    If any episode has no accuracy, for want of labels, the scores are total rewards.
    """
    accuracies = [episode.result.accuracy for episode in episodes]
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    if len(known) == len(accuracies):
        return known, True
    return [episode.result.total for episode in episodes], False


def network(episode: Episode) -> str:
    """Return the name of an episode's network; "" in a run on a single network.

    In a run on several, the names of groups begin with that of the network, see MultiNetworkEnv.
    """
    return next(iter(episode.result.plan), "").rpartition("/")[0]


def maker(episode: Episode) -> str:
    """Return the name of the method that made the plan and, in a run on several networks, of the network."""
    return f"{episode.by}, {network(episode)}" if network(episode) else episode.by
