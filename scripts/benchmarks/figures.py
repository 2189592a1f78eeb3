"""Accuracies of benchmarks, how they spread, and how sure their differences are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from prunegym.pruning.data import Images
from prunegym.pruning.metrics import accuracy, predictions

RESAMPLES = 10_000


def accuracy_on(model: nn.Module, images: Images) -> float:
    """Return the accuracy of a network on images."""
    return accuracy(*predictions(model, images.batches()))


def right_answers(model: nn.Module, images: Images) -> dict[str, Any]:
    """Return a network's `accuracy` on images, and `right`: 1 for each one it gets right, else 0."""
    logits, labels = predictions(model, images.batches())
    right = (logits.argmax(1) == labels).long().tolist()
    return {"accuracy": float(np.mean(right)), "right": "".join(map(str, right))}


def mean_and_spread(accuracies: Iterable[float]) -> str:
    """Return mean and standard deviation in percent; "-" if there are none."""
    percent = [100 * value for value in accuracies]
    return f"{np.mean(percent):.1f} ± {np.std(percent):.1f}" if percent else "-"


def ahead_by(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """Return by how many points of accuracy we are ahead, and its 95 % bootstrap interval.

    Args:
        ours: for each seed, which images were right, see `right_answers`.
        theirs: likewise, for the same seeds and images.
    """
    one, other = (np.array([[float(bit) for bit in right] for right in some]) for some in (ours, theirs))
    low, high = interval(one, other)
    return f"{100 * (one.mean() - other.mean()):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def interval(one: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a difference of mean accuracies, paired by seed and image.

    Args:
        one: whether each image was right, [seeds, images].
        other: likewise, of the same seeds and images.
    """
    rng = np.random.default_rng(0)
    difference = one - other
    seeds, images = difference.shape
    means = [
        difference[rng.integers(seeds, size=seeds)][:, rng.integers(images, size=images)].mean()
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
