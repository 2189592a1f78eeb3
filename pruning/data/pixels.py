"""Images as arrays of whole numbers: checked, kept small, and normalised when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from prunegym.pruning.errors import DataError
from prunegym.pruning.networks.registry import NetworkSpec


@dataclass(frozen=True, eq=False)
class StoredPixels:
    """Pixels in memory, a byte each: a quarter of what the images take as a network reads them."""

    pixels: Tensor  # [N, C, H, W], uint8
    network: NetworkSpec

    def __getitem__(self, which: Tensor) -> Tensor:
        """Return the normalised images of these numbers."""
        return normalised(self.pixels[which], self.network)

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Yield all normalised images in order."""
        for pixels in self.pixels.split(batch_size):
            yield normalised(pixels, self.network)


def normalised(pixels: Tensor, network: NetworkSpec, *, white: int = 255) -> Tensor:
    """Scale whole pixels [..., C, H, W] in 0..`white` to [0, 1] and normalise them as a network expects."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (network.mean, network.std))
    return pixels.float().div_(white).sub_(mean).div_(std).contiguous()


def check_size(shape: torch.Size, network: NetworkSpec, place: str) -> None:
    """Check that images [N, C, H, W] are as large as a network takes them.

    Raises:
        DataError: they are not; arrays are never scaled.
    """
    if shape[1:] != network.input_shape:
        raise DataError(
            f"{place}: channels, height and width are {list(shape[1:])}, "
            f"but {network.name} takes {list(network.input_shape)}; give --input-size, or scale the images"
        )
