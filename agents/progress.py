"""A progress bar over episodes, the unit in which agents and baselines are compared."""

from __future__ import annotations

import math
from types import TracebackType

from tqdm import tqdm

from prunegym.agents.history import EpisodeHistory
from prunegym.agents.rollout import EpisodeResult


class EpisodeBar:
    """A bar on standard error with the last and the best reward; hidden if that is no terminal."""

    def __init__(
        self, label: str, *, episodes: int, shown: bool, history: EpisodeHistory | None = None
    ) -> None:
        best = history.best if history else None
        self._best = best.total if best else -math.inf
        # None, not False: tqdm then hides the bar where standard error is not a terminal
        disable = None if shown else True
        initial = history.episodes if history else 0
        self._bar = tqdm(total=episodes, initial=initial, desc=label, unit="episode", disable=disable)

    def __enter__(self) -> EpisodeBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def show(self, result: EpisodeResult) -> None:
        """Advance the bar by one episode and show its reward."""
        self._best = max(self._best, result.total)
        self._bar.set_postfix_str(f"last {result.total:.4f}, best {self._best:.4f}", refresh=False)
        self._bar.update()
