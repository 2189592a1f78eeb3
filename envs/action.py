"""Decode an action: from a point in [-1, 1]^techniques to the amounts that it asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from prunegym.envs.budget import Limits
from prunegym.pruning.plan import Amount
from prunegym.pruning.technique import Technique

ActionMode = Literal["centred", "raw"]


def decode_action(
    action: NDArray[np.floating],
    techniques: Sequence[Technique],
    *,
    even: Mapping[str, Amount],
    limits: Limits,
    mode: ActionMode = "centred",
) -> dict[str, Amount]:
    """Return the amounts that an action asks for: technique -> amount.

    An entry of a centred technique is centred on the budget (docs/decisions.md, D2): 0 is its amount in the
    even plan of the sites from here on, -1 nothing, +1 the limit. Any other technique compresses nothing at
    or below 0, and up to the limit at +1. In the mode "raw", as in AMC (He et al. 2018, section 3.2), an
    entry of a centred technique is the amount itself, whatever the budget: -1 nothing, +1 the limit; other
    techniques compress nothing. Values beyond the box are clipped.

    Args:
        action: one entry for each technique.
        techniques: the techniques in the order of the entries.
        even: technique -> amount in the even plan of this and all later sites.
        limits: the farthest amounts.
        mode: how entries are read.
    """
    clipped = np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0).tolist()
    amounts = {}
    for technique, entry in zip(techniques, clipped, strict=True):
        neutral, limit = technique.neutral, limits.of(technique)
        if not technique.centred:
            amount = neutral + (limit - neutral) * max(0.0, entry) if mode == "centred" else neutral
        elif mode == "raw":
            amount = neutral + (limit - neutral) * (1.0 + entry) / 2.0
        else:
            base = even[technique.name]
            reach = base - neutral if entry < 0 else limit - base
            beyond = (limit - base) * (limit - neutral) < 0  # the even plan lies at the limit, or past it
            amount = base + entry * (0.0 if entry >= 0 and beyond else reach)
        amounts[technique.name] = amount
    return amounts
