"""The registered methods by which plans are applied."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """The registered methods by which a plan is applied."""

    criterion: str = "l1"
    compensation: str = "least-squares"
    round_to: int = 1  # units of every group are rounded to a multiple of this
    techniques: tuple[str, ...] = ("channels", "gates")  # the kinds of compression that plans may use


DEFAULT_METHOD = Method()
