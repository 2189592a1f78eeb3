"""Pruning plans: a static and a runtime ratio for each channel group. No torch in here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prunegym.pruning.errors import PlanError
from prunegym.pruning.files import read_json, write_json

PLAN_VERSION = 1


def kept_units(units: int, ratio: float, *, round_to: int = 1) -> int:
    """Return how many of `units` are kept when the share `ratio` is pruned; never 0, never above `units`.

    Rounded half up, then to a multiple of `round_to`, but never below one; all of them stay all of them.
    """
    kept = max(1, math.floor(units * (1.0 - ratio) + 0.5))
    if round_to > 1 and kept < units:
        kept = max(round_to, math.floor(kept / round_to + 0.5) * round_to)
    return min(units, kept)


@dataclass(frozen=True, slots=True)
class LayerDecision:
    """The two ratios of one channel group; both are shares pruned, in [0, 1)."""

    static_ratio: float = 0.0  # of all units: removed by surgery
    runtime_ratio: float = 0.0  # of the kept units: skipped by the gate, per input

    def validate(self, name: str) -> None:
        """Raise PlanError if a ratio is not a number in [0, 1)."""
        for field_name in ("static_ratio", "runtime_ratio"):
            value = getattr(self, field_name)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not 0.0 <= value < 1.0:  # a NaN fails every comparison
                raise PlanError(
                    f"group {name!r}: {field_name} must lie in [0, 1), got {value!r}; "
                    "ratios are shares pruned: to keep 70 % of the channels write 0.3"
                )


@dataclass(frozen=True)
class PruningPlan:
    """Group name -> decision. A group that is not named is left alone.

    Example:
        >>> plan = PruningPlan().with_decision("conv1", LayerDecision(static_ratio=0.5))
        >>> plan["conv1"].static_ratio, plan["elsewhere"].static_ratio
        (0.5, 0.0)
    """

    decisions: Mapping[str, LayerDecision] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, decision in self.decisions.items():
            decision.validate(name)

    def __getitem__(self, name: str) -> LayerDecision:
        return self.decisions.get(name, LayerDecision())

    def with_decision(self, name: str, decision: LayerDecision) -> PruningPlan:
        """Return this plan with one decision added or replaced."""
        return PruningPlan({**self.decisions, name: decision})

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return plain data: fit for JSON, for `info`, and for a process boundary."""
        return {name: asdict(decision) for name, decision in self.decisions.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Mapping[str, float]]) -> PruningPlan:
        """Build a plan from what `to_dict` returned.

        Raises:
            PlanError: a decision is not an object, has unknown keys, or a ratio is out of range.
        """
        decisions = {}
        for name, entry in data.items():
            if not isinstance(entry, Mapping) or not set(entry) <= {"static_ratio", "runtime_ratio"}:
                raise PlanError(
                    f"group {name!r}: expected {{'static_ratio': ..., 'runtime_ratio': ...}}, got {entry!r}"
                )
            decisions[name] = LayerDecision(**entry)
        return cls(decisions)

    def save(self, path: Path) -> None:
        """Write the plan as JSON; the file appears whole or not at all."""
        write_json(path, {"version": PLAN_VERSION, "decisions": self.to_dict()})

    @classmethod
    def load(cls, path: Path) -> PruningPlan:
        """Read a plan that `save` wrote.

        Raises:
            PlanError: the file is missing, is not JSON, or is not a plan of a known version.
        """
        try:
            data: Any = read_json(path)
        except (OSError, ValueError) as error:
            raise PlanError(f"cannot read the plan {path}: {error}") from error
        if not isinstance(data, dict) or data.get("version") != PLAN_VERSION:
            raise PlanError(
                f"{path} is not a pruning plan of version {PLAN_VERSION}; write it anew with this release"
            )
        decisions = data.get("decisions")
        if not isinstance(decisions, dict):
            raise PlanError(f"{path}: 'decisions' must map group names to ratios")
        return cls.from_dict(decisions)
