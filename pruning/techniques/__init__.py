"""Compression techniques; their order is that of an action's entries. Add a module and its import."""

from collections.abc import Mapping

from prunegym.pruning.errors import PlanError
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.registry import nearest_hint
from prunegym.pruning.technique import TECHNIQUES

# isort: off
from prunegym.pruning.techniques import gates as _gates
from prunegym.pruning.techniques import channels as _channels
from prunegym.pruning.techniques import depth as _depth
# isort: on

__all__ = ["TECHNIQUES", "check_amounts", "techniques_of"]

_MODULES = (_gates, _channels, _depth)  # imported for the techniques that they register


def check_amounts(plan: CompressionPlan) -> None:
    """Refuse amounts that make no sense on any network, whichever techniques are on.

    Raises:
        PlanError: a key belongs to no technique, or an amount is out of range.
    """
    kinds = {kind.key: kind for kind in TECHNIQUES.values()}
    for site, decision in plan.decisions.items():
        for key, amount in decision.items():
            if key not in kinds:
                raise PlanError(f"site {site!r}: no technique decides {key!r}.{nearest_hint(key, kinds)}")
            kinds[key].check(amount, f"site {site!r}")


def techniques_of(*plans: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the techniques that plans, as plain data, hold amounts of, in the registry's order."""
    keys = {key for plan in plans for decision in plan.values() for key in decision}
    return [name for name, kind in TECHNIQUES.items() if kind.key in keys]
