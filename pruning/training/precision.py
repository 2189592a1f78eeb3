"""Numeric precision of training: half the bits where that is faster."""

from __future__ import annotations

import torch

from prunegym.pruning.registry import unknown_name

PRECISIONS = ("auto", "float32", "bfloat16", "float16")


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the type of convolutions and matrix products.

    Args:
        name: one of PRECISIONS. `auto` is bfloat16 on a GPU that computes with it, else float32 (measured:
            docs/decisions.md, D27).
        device: the device that the network is on.

    Raises:
        UnknownNameError: there is no such precision.
    """
    if name not in PRECISIONS:
        raise unknown_name("precision", name, PRECISIONS)
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


class Precision:
    """Autocast, and for float16 the scaling that keeps its small gradients from vanishing.

    Args:
        name: see `resolve_precision`; weights, their gradients and statistics stay float32 in any case.
        device: the device that the network is on.

    Raises:
        UnknownNameError: there is no such precision.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self._dtype = resolve_precision(name, device)
        self._device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=self._dtype == torch.float16)

    def cast(self) -> torch.autocast:
        """Return a context in which a forward pass computes in this precision."""
        return torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)

    @property
    def may_overflow(self) -> bool:
        """True while an infinite gradient may be due to the scale, which can still be lowered."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1
