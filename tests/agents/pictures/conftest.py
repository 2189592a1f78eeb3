"""Episodes made up for pictures."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from prunegym.agents.episode_log import Episode
from prunegym.agents.rollout import EpisodeResult


@pytest.fixture
def episode() -> Callable[..., Episode]:
    def make(
        score: float = 0.5,
        macs: float = 0.5,
        *,
        by: str = "ppo",
        labelled: bool = True,
        plan: dict[str, tuple[float, float]] | None = None,
        estimated: bool = False,
    ) -> Episode:
        ratios = {
            group: {"static_ratio": static, "runtime_ratio": runtime}
            for group, (static, runtime) in (plan or {"a": (0.5, 0.0)}).items()
        }
        reward = {"divergence": 0.1, "total": score - 0.25, "estimated": float(estimated)}
        return Episode(
            by, EpisodeResult(ratios, reward, score if labelled else None, {"macs": macs, "params": 0.4})
        )

    return make
