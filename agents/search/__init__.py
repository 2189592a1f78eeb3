"""Searches that propose whole episodes: the baselines every learner must beat, behind one driver."""

from agents.search.base import Actions, Search, Space
from agents.search.choice import choose_on_validation
from agents.search.registry import SEARCHES
from agents.search.run import SearchResult, require_episodes, search

__all__ = [
    "SEARCHES",
    "Actions",
    "Search",
    "SearchResult",
    "Space",
    "choose_on_validation",
    "require_episodes",
    "search",
]
