"""Images with labels: in memory, or read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

BATCH_SIZE = 256
BATCH_BYTES = 2**25  # of the images alone; their features in a network take tens of times as much


class ImageSource(Protocol):
    """Normalised images that are read, or made, when they are asked for."""

    def __getitem__(self, which: Tensor, /) -> Tensor:
        """Return the images [K, C, H, W], float32, of these numbers, [K]."""

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Yield all images [B, C, H, W] in order; the last batch may be smaller."""


@dataclass(frozen=True, eq=False)
class Images:
    """Normalised images [N, C, H, W], float32, and their labels."""

    source: Tensor | ImageSource  # the images, or the source that reads them
    labels: Tensor  # [N], int64
    labelled: bool = True  # else the labels are the dense network's own answers, for want of true ones
    held: bool = False  # all are read when the first is asked for, and then kept in memory

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Tensor:
        """All images [N, C, H, W] in memory; see `take` and `batches` where there may be many."""
        return self._content if isinstance(self._content, Tensor) else self._read(self._content)

    def take(self, which: Tensor) -> Tensor:
        """Return the images [K, C, H, W] of these numbers, [K]."""
        return self._content[which]

    def batches(self, batch_size: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images [B, C, H, W] and labels [B] in order; the last batch may be smaller.

        Args:
            batch_size: the most images in a batch; BATCH_SIZE, or as many as BATCH_BYTES allow, by default.
        """
        content = self._content
        if batch_size is None:
            batch_size = min(BATCH_SIZE, 1 + BATCH_BYTES // content[torch.tensor([0])].nbytes)
        parts = content.split(batch_size) if isinstance(content, Tensor) else content.batches(batch_size)
        yield from zip(parts, self.labels.split(batch_size), strict=True)

    @cached_property
    def _content(self) -> Tensor | ImageSource:
        if isinstance(self.source, Tensor) or not self.held:
            return self.source
        return self._read(self.source)

    def _read(self, source: ImageSource) -> Tensor:
        """Return all images; filled in batch by batch, since two copies might not fit."""
        images = torch.empty(0)
        start = 0
        for batch in source.batches(BATCH_SIZE):
            if start == 0:
                images = batch.new_empty((len(self), *batch.shape[1:]))
            images[start : start + len(batch)] = batch
            start += len(batch)
        return images


@dataclass(frozen=True, eq=False)
class _OneAfterTheOther:
    """The images of several parts, each from where it has them."""

    parts: tuple[Images, ...]

    def __getitem__(self, which: Tensor) -> Tensor:
        first, pieces, places = 0, [], []
        for part in self.parts:
            in_part = ((which >= first) & (which < first + len(part))).nonzero().squeeze(1)
            if len(in_part):
                pieces.append(part.take(which[in_part] - first))
                places.append(in_part)
            first += len(part)
        return torch.cat(pieces)[torch.cat(places).argsort()]

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        for which in torch.arange(sum(map(len, self.parts))).split(batch_size):
            yield self[which]


def joined(*parts: Images) -> Images:
    """Return the images of all parts, one part after the other."""
    tensors = [part.source for part in parts if isinstance(part.source, Tensor)]
    return Images(
        torch.cat(tensors) if len(tensors) == len(parts) else _OneAfterTheOther(parts),
        torch.cat([part.labels for part in parts]),
        labelled=all(part.labelled for part in parts),
    )
