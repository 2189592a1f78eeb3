"""Decode an action: from a point in [-1, 1]^2 to a requested static and runtime ratio."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from prunegym.envs.budget import Limits

ActionMode = Literal["centred", "raw"]

RUNTIME, STATIC = 0, 1  # positions in the action


def decode_action(
    action: NDArray[np.floating], *, even_ratio: float, limits: Limits, gated: bool
) -> tuple[float, float]:
    """Return the requested (static ratio, runtime ratio) of a centred action (docs/decisions.md, D2).

    Zero is the even static ratio that meets the budget; -1 prunes nothing, +1 as much as the limit allows.
    At or below 0 the runtime entry asks for no gate. Values beyond the box are clipped.

    Args:
        action: [2], runtime and static.
        even_ratio: the smallest equal static ratio of this and all later groups that meets the budget.
        limits: the largest ratios.
        gated: whether the group takes a runtime gate.
    """
    clipped = np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)
    target = float(clipped[STATIC])
    reach = even_ratio if target < 0 else max(0.0, limits.static - even_ratio)
    runtime = limits.runtime * max(0.0, float(clipped[RUNTIME])) if gated else 0.0
    return even_ratio + target * reach, runtime


def decode_raw_action(action: NDArray[np.floating], *, limits: Limits) -> tuple[float, float]:
    """Return the requested (static ratio, runtime ratio) of a raw action, as in AMC.

    The action is the static ratio itself, whatever the budget: -1 prunes nothing, +1 as much as the limit
    allows; nothing is skipped at run time (He et al. 2018, section 3.2).
    """
    target = float(np.clip(action[STATIC], -1.0, 1.0))
    return limits.static * (1.0 + target) / 2.0, 0.0
