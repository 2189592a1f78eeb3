"""scikit-learn's 8x8 digits: the embedded default."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from prunegym.pruning.data.images import Images
from prunegym.pruning.data.kinds import KINDS, Request
from prunegym.pruning.data.pixels import check_size, normalised
from prunegym.pruning.data.splits import ImageSplits

# Of every 36 digits of a class, in the data set's order; dealt without a random generator, since the dense
# network's weights are kept in a cache and must not meet other images after an update of some library.
_DEAL = {"test": 8, "validation": 5, "reward": 5, "calibration": 5, "train": 13}
_STRIDE = 7  # coprime to 36: neighbours, often by the same writer, go to different splits


@KINDS.register("digits")
def digits(place: Path, request: Request) -> ImageSplits:
    """Return the digits, always split the same way; they come with scikit-learn and have no place."""
    from sklearn.datasets import load_digits  # a second to import, for the one kind of data that needs it

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images[:, None]).byte()
    labels = torch.from_numpy(bunch.target).long()
    check_size(pixels.shape, request.network, "digits")
    images = normalised(pixels, request.network, white=16)
    parts = {name: Images(images[at], labels[at]) for name, at in _dealt(labels).items()}
    return ImageSplits(**parts, classes=len(bunch.target_names))


def _dealt(labels: Tensor) -> dict[str, Tensor]:
    """Return the numbers of each split; each has its share of every class."""
    rank = torch.empty_like(labels)  # of each image among those of its class
    for label in labels.unique():
        rank[labels == label] = torch.arange(int((labels == label).sum()))
    cards = (rank * _STRIDE) % sum(_DEAL.values())
    edges = torch.tensor([0, *_DEAL.values()]).cumsum(0).tolist()
    ranges = zip(_DEAL, edges, edges[1:], strict=False)
    return {name: ((cards >= low) & (cards < high)).nonzero().squeeze(1) for name, low, high in ranges}
