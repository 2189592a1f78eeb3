"""CIFAR-10 and CIFAR-100 in the files that torchvision reads and, if asked to, downloads."""

from __future__ import annotations

import sys
from contextlib import nullcontext, redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from prunegym.pruning.data.images import Images
from prunegym.pruning.data.kinds import KINDS, Request
from prunegym.pruning.data.pixels import StoredPixels, check_size
from prunegym.pruning.data.splits import ImageSplits, draw_splits
from prunegym.pruning.errors import DataError, one_line
from prunegym.pruning.machine_failures import raise_machine_failure
from prunegym.pruning.optional_packages import imported


def _cifar(name: str, place: Path, request: Request) -> ImageSplits:
    """Load the images; torchvision checks each file's hash before it is unpickled."""
    dataset = getattr(imported("torchvision.datasets", extra="zoo", purpose="images of CIFAR"), name)
    train, test = _opened(dataset, place, request)
    pixels, test_pixels = (torch.from_numpy(part.data).permute(0, 3, 1, 2) for part in (train, test))
    check_size(pixels.shape, request.network, f"{name} in {place}")
    labels, test_labels = (torch.tensor(part.targets) for part in (train, test))
    return draw_splits(
        lambda at: StoredPixels(pixels[at], request.network),
        labels,
        Images(StoredPixels(test_pixels, request.network), test_labels),
        seed=request.seed,
        place=str(place),
        classes=len(train.classes),
    )


KINDS.register("cifar10:DIR")(partial(_cifar, "CIFAR10"))
KINDS.register("cifar100:DIR")(partial(_cifar, "CIFAR100"))


def _opened(dataset: Any, place: Path, request: Request) -> tuple[Any, Any]:
    """Return the training and the test images of a data set of torchvision's."""
    files = place / dataset.base_folder
    if not request.download and not files.is_dir():
        raise DataError(
            f"there is no folder {files}; add --download to fetch it from {dataset.url}, or name its parent"
        )
    try:
        shown = request.progress and sys.stderr.isatty()
        with nullcontext() if shown else redirect_stderr(StringIO()):  # torchvision always shows a bar
            train = dataset(place, train=True, download=request.download)
        return train, dataset(place, train=False)
    except Exception as error:  # a connection fails in a dozen ways, and so does a damaged file
        raise_machine_failure(error)
        cause = one_line(error)
        if request.download:
            raise DataError(f"{dataset.__name__} cannot be downloaded to {place}: {cause}") from error
        raise DataError(
            f"{files} is incomplete or damaged; add --download to fetch it again ({cause})"
        ) from error
