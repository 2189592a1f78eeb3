"""A plan as the cells of a table."""

from __future__ import annotations

from prunegym.envs.results import PlainPlan
from prunegym.pruning.techniques import TECHNIQUES, techniques_of


def plan_cells(plan: PlainPlan) -> tuple[list[str], dict[str, list[str]]]:
    """Return the titles of the columns, one for each technique, and for each site its amounts as text.

    A technique that cannot decide at a site has a dash there.
    """
    keys = [TECHNIQUES[name].key for name in reversed(techniques_of(plan))]
    cells = {
        site: [f"{decision[key]:.3f}" if key in decision else "-" for key in keys]
        for site, decision in plan.items()
    }
    return [key.replace("_", " ") for key in keys], cells
