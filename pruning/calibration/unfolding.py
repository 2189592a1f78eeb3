"""Unfold a layer's input into the rows that its weight is multiplied with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from prunegym.pruning.surgery.cutting import CONVOLUTIONS

POSITIONS_PER_IMAGE = 64  # sampled output positions of a layer; 64 x 512 images give every layer 32k rows


def unfolded(module: Any, x: Tensor, generator: torch.Generator, *, positions: int | None = None) -> Tensor:
    """Return the inputs that a reader's kernel sees at sampled output positions.

    Args:
        module: a convolution (not a transposed one) or linear layer.
        x: its input, [batch, channels, ...], or [batch, ..., features] for a linear layer.
        generator: draws the positions, the same for all images of the batch.
        positions: the largest number of positions; None: POSITIONS_PER_IMAGE.

    Returns:
        [conv groups, rows, dimensions]: dimensions as in a row of the layer's flattened weight.
    """
    if isinstance(module, nn.Linear):
        x = x.flatten(1, -2) if x.dim() > 2 else x[:, None]
        places = sampled_positions(x.size(1), generator, positions)
        return x[:, places].reshape(1, -1, x.size(-1))
    windows = _padded(module, x)
    spatial = len(module.kernel_size)
    for dim, (size, stride, dilation) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True), start=2
    ):
        windows = windows.unfold(dim, dilation * (size - 1) + 1, stride)[..., ::dilation]
    sizes = windows.shape[2 : 2 + spatial]
    at: tuple[Tensor, ...] = torch.unravel_index(
        sampled_positions(sizes.numel(), generator, positions), sizes
    )
    where: tuple[Any, ...] = (slice(None), slice(None), *at)
    seen = windows[where]  # [batch, channels, positions, *kernel]
    return seen.unflatten(1, (module.groups, -1)).transpose(2, 3).movedim(1, 0).flatten(3).flatten(1, 2)


def _padded(module: Any, x: Tensor) -> Tensor:
    """Return a convolution's input with the padding around it, as its kernel sees it."""
    if type(module) in CONVOLUTIONS:
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        return functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    with _PaddedInput(module) as seen:  # a variant may pad by itself, as sizes ask
        module.forward(x)  # its hooks are for others
    return seen.value


class _PaddedInput(TorchFunctionMode):
    """Records the input, padded, of the convolution that runs inside of it."""

    value: Tensor

    def __init__(self, module: Any) -> None:
        super().__init__()
        self._module = module

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (functional.conv1d, functional.conv2d, functional.conv3d):
            given = dict(
                zip(("input", "weight", "bias", "stride", "padding"), args, strict=False), **(kwargs or {})
            )
            padding = given.get("padding", 0)
            if isinstance(padding, str):  # the module's own, which knows the amounts
                amounts = self._module._reversed_padding_repeated_twice
            else:
                by_dim = [padding] * len(self._module.kernel_size) if isinstance(padding, int) else padding
                amounts = [amount for each in reversed(by_dim) for amount in (each, each)]
            self.value = functional.pad(given["input"], amounts)
        return func(*args, **(kwargs or {}))


def sampled_positions(count: int, generator: torch.Generator, maximum: int | None = None) -> Tensor:
    """Return at most `maximum` of `count` places; generators of one seed choose alike."""
    maximum = maximum or POSITIONS_PER_IMAGE
    if count <= maximum:
        return torch.arange(count)
    return torch.randperm(count, generator=generator)[:maximum]
