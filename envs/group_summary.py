"""What is known of each group before any decision."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunegym.pruning.cost import CostModel
from prunegym.pruning.network import PrunableNetwork


def group_summary(network: PrunableNetwork, loo_gain: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Return what is known of each prunable group, as plain data.

    Its `name` and `units`, its `macs_share` and `params_share` of the dense network, the `errors` at a
    quarter, a half and three quarters (`error_curve`), and its `loo_gain`.

    Args:
        network: whose groups.
        loo_gain: of each group within a budget, see `UniformBaseline`.
    """
    columns = zip(
        network.graph.prunable,
        network.cost.vanishing_shares(CostModel.macs).tolist(),
        network.cost.vanishing_shares(CostModel.params).tolist(),
        network.error_curves,
        loo_gain.tolist(),
        strict=True,
    )
    return [
        {
            "name": group.name,
            "units": group.units,
            "macs_share": macs,
            "params_share": params,
            "errors": list(errors),
            "loo_gain": loo_gain,
        }
        for group, macs, params, errors, loo_gain in columns
    ]
