"""Loaders of (images, labels): checked batch by batch, or gathered in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from prunegym.pruning.data.images import Images
from prunegym.pruning.errors import DataError


def images_of(loader: Iterable[Any]) -> Images:
    """Return the images of a DataLoader, or any iterable of (images, labels), held in memory.

    For more than memory holds, see `load_splits`, or give `Images` an ImageSource of your own.

    Args:
        loader: gives images [B, C, H, W], normalised, and labels [B]; gone through once.

    Raises:
        DataError: it gives nothing, no labels, or images that are NaN or infinite.

    Example:
        >>> batch = torch.zeros(2, 3, 8, 8), torch.tensor([0, 1])
        >>> len(images_of([batch, batch]))
        4
    """
    batches = list(checked(loader, "the loader"))
    if not batches:
        raise DataError("the loader gives no image; give at least one")
    sizes = {tuple(images.shape[1:]) for images, _ in batches}
    if len(sizes) > 1:
        listed = " and ".join(str(list(size)) for size in sorted(sizes))
        raise DataError(f"the loader's images must be of one size, got {listed}; scale or crop them")
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return Images(images, labels.long())


def checked(loader: Iterable[Any], place: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of a loader, images [B, ...] and labels [B], each one checked.

    Args:
        loader: gives pairs of tensors.
        place: a name for the loader, for errors.

    Raises:
        DataError: a batch is no pair, its labels are missing, or its images are NaN or infinite.
    """
    for i, batch in enumerate(loader):
        where = f"{place}, batch {i}"
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise DataError(f"{where}: must be images and their labels, got {_described(batch)}")
        images, labels = batch
        if not isinstance(images, Tensor) or not images.is_floating_point():
            raise DataError(f"{where}: images must be normalised tensors of floats, got {_described(images)}")
        if not torch.isfinite(images).all():
            raise DataError(f"{where}: images are NaN or infinite; check how they are normalised")
        if not isinstance(labels, Tensor) or labels.shape != images.shape[:1] or labels.is_floating_point():
            raise DataError(
                f"{where}: {len(images)} images need as many labels, a tensor of whole numbers, "
                f"got {_described(labels)}"
            )
        yield images, labels


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, tuple | list):
        return f"{len(value)} parts"
    return type(value).__name__
