"""What plans decide, technique by technique: as the cells of a table, and as numbers for pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

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


def compression(sites: Sequence[str], plans: Sequence[PlainPlan], technique: str) -> NDArray[np.float64]:
    """Return how far plans compress sites by a technique, [sites, plans] in [0, 1]; NaN where undecided."""
    kind = TECHNIQUES[technique]
    amounts = [[plan.get(site, {}).get(kind.key) for plan in plans] for site in sites]
    return np.array([[np.nan if one is None else kind.scaled(one) for one in row] for row in amounts])
