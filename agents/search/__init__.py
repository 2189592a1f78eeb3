"""Searches that propose whole episodes, as baselines for learning, and the driver that runs them."""

from prunegym.agents.search.base import Actions, Search, Space
from prunegym.agents.search.choice import choose_on_validation
from prunegym.agents.search.registry import SEARCHES
from prunegym.agents.search.run import SearchResult, search

__all__ = [
    "SEARCHES",
    "Actions",
    "Search",
    "SearchResult",
    "Space",
    "choose_on_validation",
    "search",
]
