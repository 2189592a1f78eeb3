"""Score plans on the reward images: each distinct one once, and only promising ones in full."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from envs.reward import Goal, Score, score_outputs
from pruning.cost import Widths, widths_plan
from pruning.errors import DataError
from pruning.evaluation import predictions
from pruning.plan import PruningPlan
from pruning.prunable import PrunableNetwork

Batch: TypeAlias = tuple[Tensor, Tensor]  # images, labels

SURE = 8  # plans scored in full before the first images are trusted to say which are promising
MARGIN = 2.0  # standard deviations by which an estimate must miss the best plan for the rest to be spared
TINY = 1e-6  # keeps the logarithm of a perfect plan's loss finite


class PlanScorer:
    """Carries plans out and scores them; equal plans are looked up.

    With `first_images`, a plan meets as many images first. Its full loss is then estimated as the loss on
    those, times what full losses have been of first ones so far. If that lies clearly above the loss to beat,
    the estimate stands, marked as one; else the other images follow.

    Args:
        network: whose plans.
        batches: reward images, normalised, and labels.
        goal: what the loss is made of.
        first_images: how many to begin with; None for all at once.

    Raises:
        DataError: there is no image, or there are to be no first ones.
    """

    def __init__(
        self,
        network: PrunableNetwork,
        batches: Iterable[Batch],
        *,
        goal: Goal,
        first_images: int | None = None,
    ) -> None:
        self._network = network
        self._goal: Goal = goal
        # listed: a loader that shuffles would pair the dense network's outputs with other images
        self._first, self._rest = first_batches(list(batches), first_images)
        self._dense, self._labels = predictions(network.model, [*self._first, *self._rest])
        self._scores: dict[bytes, Score] = {}

    def score(self, widths: Widths, *, to_beat: float = math.inf) -> Score:
        """Return the score of the plan that comes to these unit counts.

        Args:
            widths: the unit counts.
            to_beat: for a plan whose loss lies clearly above it, an estimate will do.
        """
        known = self._scores.get(_key(widths))
        if known is None or (known.estimated and known.loss(self._goal) <= to_beat):
            plan = widths_plan(self._network.graph, widths)
            known = self._scores[_key(widths)] = self._measure(plan, to_beat)
        return known

    def remember(self, widths: Widths, score: Score) -> None:
        """Take a score as known, from an earlier run of the same task."""
        self._scores[_key(widths)] = score

    def _measure(self, plan: PruningPlan, to_beat: float) -> Score:
        model = self._network.compress(plan).model
        logits, _ = predictions(model, self._first)
        first = self._score(logits)
        if not self._rest:
            return first
        estimate = self._estimate(first, to_beat)
        if estimate is not None:
            return estimate
        full = self._score(torch.cat([logits, predictions(model, self._rest)[0]]))
        return replace(full, first_loss=first.loss(self._goal))

    def _score(self, logits: Tensor) -> Score:
        return score_outputs(logits, self._dense[: len(logits)], self._labels[: len(logits)])

    def _estimate(self, first: Score, to_beat: float) -> Score | None:
        """Return the estimate from the first images, None where the plan may beat the loss to beat."""
        scored = self._scores.values()
        losses = [(one.first_loss, one.loss(self._goal)) for one in scored if one.first_loss is not None]
        if len(losses) < SURE:
            return None
        seen = np.array(sorted(losses)) + TINY  # sorted: remembered in another order, they round alike
        logs = np.log(seen[:, 1] / seen[:, 0])
        factor, error = math.exp(logs.mean()), logs.std(ddof=1)
        if (first.loss(self._goal) + TINY) * factor <= (to_beat + TINY) * math.exp(MARGIN * error):
            return None
        if self._goal == "divergence":
            return replace(first, divergence=first.divergence * factor, estimated=True)
        return replace(first, accuracy=max(0.0, 1.0 - (1.0 - first.accuracy) * factor), estimated=True)


def _key(widths: Widths) -> bytes:
    return widths.kept.tobytes() + widths.executed.tobytes()


def first_batches(batches: list[Batch], first: int | None) -> tuple[list[Batch], list[Batch]]:
    """Return the batches of the first images and those of the rest, not copied; None leaves no rest."""
    if first is None:
        return batches, []
    if first < 1:
        raise DataError(f"a first stage needs at least one image, got {first}")
    begin, rest = [], []
    for images, labels in batches:
        here = min(first, len(labels))
        if here > 0:
            begin.append((images[:here], labels[:here]))
        if here < len(labels):
            rest.append((images[here:], labels[here:]))
        first -= here
    return begin, rest
