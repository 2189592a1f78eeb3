"""Devices that take exactly what they are said to take: no test depends on a clock."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.pruning.oracles import CONVOLUTIONS, TRANSPOSED

LAYERS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)


@torch.no_grad()
def additive(model: nn.Module, image: Tensor) -> float:
    """Milliseconds: 10 ns for each multiply-add of a layer, 20 us for each call of one."""
    total = 0.0

    def note(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        positions = output[0].numel() // output.size(-1 if isinstance(layer, nn.Linear) else 1)
        if isinstance(layer, TRANSPOSED):
            positions = args[0][0].numel() // args[0].size(1)
        total += 1e-5 * positions * layer.weight.numel() + 0.02

    handles = [layer.register_forward_hook(note) for layer in model.modules() if isinstance(layer, LAYERS)]
    model(image)
    for handle in handles:
        handle.remove()
    return total


def noisy(seed: int = 0) -> Callable[[nn.Module, Tensor], float]:
    """The additive device, held up by other work at times."""
    rng = random.Random(seed)
    return lambda model, image: additive(model, image) * (1 + rng.choice([0, 0.1, 0.5]) * rng.random())
