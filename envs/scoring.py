"""Carry plans out and score them, each distinct one once."""

from __future__ import annotations

import hashlib
import math

from prunegym.envs.objectives import Objective
from prunegym.envs.reward import Score
from prunegym.pruning.cost import Widths, widths_plan
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.plan import PruningPlan


class PlanScorer:
    """Carries plans out and has them judged; equal plans are looked up.

    Args:
        network: whose plans.
        objective: scores what comes of them.
    """

    def __init__(self, network: PrunableNetwork, objective: Objective) -> None:
        self._network = network
        self._objective = objective
        self._scores: dict[bytes, Score] = {}

    def score(self, widths: Widths, *, to_beat: float = math.inf, on_all: bool = False) -> Score:
        """Return the score of the plan that comes to these unit counts.

        Args:
            widths: the unit counts.
            to_beat: for a plan whose loss lies clearly above it, an estimate will do.
            on_all: objective a plan that is not known yet by all images, where a objective else draws some.
        """
        known = self._scores.get(_key(widths))
        if known is None or (known.estimated and known.loss <= to_beat):
            draw = None if on_all else _draw(widths)
            plan = widths_plan(self._network.graph, widths)
            known = self._scores[_key(widths)] = self._measure(plan, to_beat, draw)
        return known

    def remember(self, widths: Widths, score: Score) -> None:
        """Take a score as known, from an earlier run of the same task."""
        self._scores[_key(widths)] = score

    def _measure(self, plan: PruningPlan, to_beat: float, draw: int | None) -> Score:
        model = self._network.apply(plan).model
        return self._objective(model, to_beat=to_beat, known=self._scores.values(), draw=draw)


def _key(widths: Widths) -> bytes:
    return widths.kept.tobytes() + widths.executed.tobytes()


def _draw(widths: Widths) -> int:
    """Return the seed of a plan's draw, the same everywhere."""
    return int.from_bytes(hashlib.sha256(_key(widths)).digest()[:7], "big")
