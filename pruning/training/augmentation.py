"""Data augmentation: training images are shifted and mirrored at random."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """The random changes to one batch, drawn for all of it, whichever process then holds which images."""

    shift: int  # width of the border put around each image
    top: int  # of the part that is left
    left: int
    mirrored: Tensor | None  # [batch, 1, 1, 1], bool

    @classmethod
    def draw(cls, count: int, *, shift: int, flip: bool, generator: torch.Generator) -> Augmentation:
        """Draw changes to `count` images: a shift of all by up to `shift` pixels, a mirroring of half."""
        top, left = torch.randint(2 * shift + 1, (2,), generator=generator).tolist() if shift else (0, 0)
        mirrored = torch.rand(count, 1, 1, 1, generator=generator) < 0.5 if flip else None
        return cls(shift, top, left, mirrored)

    def apply(self, images: Tensor, share: slice) -> Tensor:
        """Return images [K, C, H, W], the `share` of the batch, augmented."""
        if self.shift:
            height, width = images.shape[-2:]
            padded = functional.pad(images, (self.shift,) * 4, mode="replicate")
            images = padded[..., self.top : self.top + height, self.left : self.left + width]
        if self.mirrored is None:
            return images
        return torch.where(self.mirrored[share], images.flip(-1), images)
