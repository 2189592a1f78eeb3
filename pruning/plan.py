"""Compression plans: what is decided at each site of a network. No torch in here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from prunegym.pruning.errors import PlanError
from prunegym.pruning.files.plain_data import read_json, version_of, write_json

PLAN_VERSION = 2
MAX_AMOUNT = 10**9  # beyond it no amount of any technique makes sense

Amount: TypeAlias = float  # in the technique's own unit: a share, a number of bits, a rank
Decision: TypeAlias = Mapping[str, Amount]  # key of a technique -> amount: {"static_ratio": 0.5}


def kept_units(units: int, ratio: float, *, round_to: int = 1) -> int:
    """Return how many of `units` are kept when the share `ratio` is pruned; never 0, never above `units`.

    Rounded half up, then to a multiple of `round_to`, but never below one; all of them stay all of them.
    """
    kept = max(1, math.floor(units * (1.0 - ratio) + 0.5))
    if round_to > 1 and kept < units:
        kept = max(round_to, math.floor(kept / round_to + 0.5) * round_to)
    return min(units, kept)


@dataclass(frozen=True)
class CompressionPlan:
    """Site -> key of a technique -> amount. What is not named is left alone.

    Which sites, keys and amounts there can be depends on the network and on the techniques that are on, see
    `DecisionSpace.levels`.

    Example:
        >>> plan = CompressionPlan().with_decision("conv1", {"static_ratio": 0.5})
        >>> plan["conv1"], plan["elsewhere"]
        ({'static_ratio': 0.5}, {})

    Raises:
        PlanError: an amount is not a finite number.
    """

    decisions: Mapping[str, Decision] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for site, decision in self.decisions.items():
            if not isinstance(decision, Mapping):
                raise PlanError(
                    f"site {site!r}: expected amounts such as {{'static_ratio': 0.5}}, got {decision!r}"
                )
            for key, amount in decision.items():
                number = isinstance(amount, (int, float)) and not isinstance(amount, bool)
                if not number or not -MAX_AMOUNT <= amount <= MAX_AMOUNT:  # a NaN fails every comparison
                    raise PlanError(f"site {site!r}: {key} must be a finite number, got {amount!r}")

    def __getitem__(self, site: str) -> Decision:
        return self.decisions.get(site, {})

    def with_decision(self, site: str, decision: Decision) -> CompressionPlan:
        """Return this plan with one decision added or replaced."""
        return CompressionPlan({**self.decisions, site: decision})

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return plain data: fit for JSON, for `info`, and for a process boundary."""
        return {site: dict(decision) for site, decision in self.decisions.items()}

    def save(self, path: Path) -> None:
        """Write the plan as JSON; the file appears whole or not at all."""
        write_json(path, {"version": PLAN_VERSION, "decisions": self.to_dict()})

    @classmethod
    def load(cls, path: Path) -> CompressionPlan:
        """Read a plan that `save` wrote.

        Raises:
            PlanError: the file is missing, is not JSON, or is not a plan of a known version.
        """
        try:
            data: Any = read_json(path)
        except (OSError, ValueError) as error:
            raise PlanError(f"cannot read the plan {path}: {error}") from error
        if version_of(data) != PLAN_VERSION:
            raise PlanError(
                f"{path} is not a compression plan of version {PLAN_VERSION}; write it anew with this release"
            )
        if unknown := set(data) - {"version", "decisions"}:
            raise PlanError(
                f"{path}: a plan has 'version' and 'decisions', but no {min(unknown)!r}; remove it"
            )
        decisions = data.get("decisions")
        if not isinstance(decisions, dict):
            raise PlanError(f"{path}: 'decisions' must map sites to amounts")
        return cls(decisions)
