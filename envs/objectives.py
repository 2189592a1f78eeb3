"""Objectives: score a compressed network on images, or by a function of the user's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property
from typing import Literal, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from prunegym.envs.reward import Score
from prunegym.pruning.data.images import BATCH_SIZE
from prunegym.pruning.errors import DataError
from prunegym.pruning.metrics import ScoreFunction, accuracy, divergence, divergences, predictions, scored

Batch: TypeAlias = tuple[Tensor, Tensor]  # images, labels
Goal = Literal["divergence", "accuracy"]

N_PLANS_BEFORE_ESTIMATES = (
    8  # plans scored in full before the first images are trusted to say which are promising
)
ESTIMATE_MARGIN_STDS = (
    2.0  # standard deviations by which an estimate must miss the best plan for the rest to be spared
)
EPS = 1e-6  # keeps the logarithm of a perfect plan's loss finite


class Objective(Protocol):
    """Scores compressed networks."""

    def __call__(
        self, model: nn.Module, *, to_beat: float, known: Iterable[Score], draw: int | None
    ) -> Score:
        """Return a network's score.

        Args:
            model: the compressed network.
            to_beat: the loss of the best plan so far; for a loss clearly above it, an estimate will do.
            known: scores of other plans.
            draw: seed of the images to evaluate on, where they are drawn; None for all of them.
        """


class ImageObjective:
    """Compares a compressed network with the dense one, or with labels, on images.

    The loss is the divergence from the dense network, or the share of wrong answers; why which, see
    docs/decisions.md, D40.

    With `first_images`, a network is run on so many images first. Its full loss is estimated as the loss on
    those, times the mean ratio of full to first losses so far. If the estimate lies clearly above the loss to
    beat, it stands and is marked as an estimate; else the network is run on the other images too.

    Args:
        dense: the dense network.
        batches: reward images, normalised, and labels.
        goal: what the loss is: the divergence from the dense network, or the share of wrong answers.
        first_images: how many to begin with; None for all at once.

    Raises:
        DataError: there is no image, or there are to be no first ones.
    """

    def __init__(
        self, dense: nn.Module, batches: Iterable[Batch], *, goal: Goal, first_images: int | None = None
    ) -> None:
        self._goal: Goal = goal
        # listed: a loader that shuffles would pair the dense network's outputs with other images
        self._first, self._rest = first_batches(list(batches), first_images)
        self._dense, self._labels = predictions(dense, [*self._first, *self._rest])

    def __call__(
        self, model: nn.Module, *, to_beat: float, known: Iterable[Score], draw: int | None = None
    ) -> Score:
        """Return a network's score, see `Objective`; nothing is drawn."""
        logits, _ = predictions(model, self._first)
        first = self._score(logits)
        if not self._rest:
            return first
        estimate = self._estimate(first, to_beat, known)
        if estimate is not None:
            return estimate
        full = self._score(torch.cat([logits, predictions(model, self._rest)[0]]))
        return replace(full, first_loss=first.loss)

    def _score(self, logits: Tensor) -> Score:
        right = accuracy(logits, self._labels[: len(logits)])
        apart = divergence(logits, self._dense[: len(logits)])
        return Score(apart if self._goal == "divergence" else 1.0 - right, accuracy=right, divergence=apart)

    def _estimate(self, first: Score, to_beat: float, known: Iterable[Score]) -> Score | None:
        """Return the estimate from the first images, None where the plan may beat the loss to beat."""
        losses = [(one.first_loss, one.loss) for one in known if one.first_loss is not None]
        if len(losses) < N_PLANS_BEFORE_ESTIMATES:
            return None
        seen = np.array(sorted(losses)) + EPS  # sorted: remembered in another order, they round alike
        logs = np.log(seen[:, 1] / seen[:, 0])
        factor, error = math.exp(logs.mean()), logs.std(ddof=1)
        if (first.loss + EPS) * factor <= (to_beat + EPS) * math.exp(ESTIMATE_MARGIN_STDS * error):
            return None
        loss = first.loss * factor
        if self._goal == "divergence":
            return replace(first, loss=loss, divergence=loss, estimated=True)
        return replace(first, loss=min(1.0, loss), accuracy=max(0.0, 1.0 - loss), estimated=True)


class ImagePool:
    """Many reward images, of which each plan is scored on some, and the dense network's outputs on them.

    Args:
        dense: the dense network.
        batches: all images, normalised, and labels.
        drawn: how many to draw for a plan.

    Raises:
        DataError: there is no image, or none is to be drawn.
    """

    def __init__(self, dense: nn.Module, batches: Iterable[Batch], *, drawn: int) -> None:
        if drawn < 1:
            raise DataError(f"a plan needs at least one image to be judged by, got {drawn}")
        # of a single batch no copy is made: there may be many images
        self._images, self.labels = (
            torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*batches, strict=True)
        )
        self._drawn = drawn
        self._dense = self._predictions(dense, self.draw(None)).double().log_softmax(1)

    def draw(self, seed: int | None) -> Tensor:
        """Return the indices of the images drawn with a seed, ascending; of all images for None."""
        count = len(self.labels)
        if seed is None or self._drawn >= count:
            return torch.arange(count)
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(count, generator=generator)[: self._drawn].sort().values

    def losses(self, model: nn.Module, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [K, classes], and divergences [K] from the dense network, on these images."""
        logits = self._predictions(model, indices)
        return logits, divergences(logits.double(), self._dense[indices])

    def _predictions(self, model: nn.Module, indices: Tensor) -> Tensor:
        batches = ((self._images[part], self.labels[part]) for part in indices.split(BATCH_SIZE))
        return predictions(model, batches)[0]


class DrawnImagesObjective:
    """Compares a compressed network with the dense one on some of many images, drawn for each plan.

    A search overfits a few hundred images that are always the same; images drawn anew cost as much, and their
    errors average out (docs/decisions.md, D41). A draw depends on the plan alone, so that it is the same in
    any process and in a resumed run.

    The loss is a ratio estimate (Cochran 1977, chapter 6): the mean on the images drawn, times the ratio of
    the anchor's mean loss on all images to its mean loss on those drawn.

    Args:
        pool: the images.
        anchor: makes the uniformly pruned network, whose loss on an image tells how hard the image is.
    """

    def __init__(self, pool: ImagePool, *, anchor: Callable[[], nn.Module]) -> None:
        self._pool = pool
        self._make_anchor = anchor

    def __call__(
        self, model: nn.Module, *, to_beat: float, known: Iterable[Score], draw: int | None
    ) -> Score:
        """Return a network's score on images drawn for it, or on all of them; never marked as an estimate."""
        indices = self._pool.draw(draw)
        logits, losses = self._pool.losses(model, indices)
        loss = float(losses.mean())
        if len(indices) < len(self._pool.labels):
            loss *= float((self._anchor.mean() + EPS) / (self._anchor[indices].mean() + EPS))
        labels = self._pool.labels[indices].to(logits.device)
        return Score(loss, accuracy=accuracy(logits, labels), divergence=loss)

    @cached_property
    def _anchor(self) -> Tensor:
        """The anchor's loss on each image, float64 [N]."""
        return self._pool.losses(self._make_anchor(), self._pool.draw(None))[1]


class FunctionObjective:
    """Goes by a user's score function, higher being better.

    The loss is how far the score falls below the dense network's, as a share of that (of 1 where that is 0).

    Args:
        function: the score of a network, which it may change: it is given a copy.
        dense: the dense network.

    Raises:
        DataError: see `scored`.
    """

    def __init__(self, function: ScoreFunction, dense: nn.Module) -> None:
        self._function = function
        self._dense = scored(function, dense)

    def __call__(
        self, model: nn.Module, *, to_beat: float, known: Iterable[Score], draw: int | None = None
    ) -> Score:
        """Return a network's score, see `Objective`; never an estimate, and nothing is drawn."""
        found = scored(self._function, model)
        return Score(max(0.0, self._dense - found) / (abs(self._dense) or 1.0), score=found)


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
