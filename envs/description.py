"""What can be pruned in a network, how far, and what is known of each group before any decision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from prunegym.envs.budget import Limits
from prunegym.envs.budget_projection import smallest_shares
from prunegym.pruning.compensation import COMPENSATIONS
from prunegym.pruning.cost import CostModel
from prunegym.pruning.graph.patterns import restrict
from prunegym.pruning.latency import LatencyPrices, cached_table
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.surgery.verification import trace


def describe(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    only: Sequence[str] = (),
    protect: Sequence[str] = (),
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    round_to: int = 1,
    compensation: str = "least-squares",
) -> dict[str, Any]:
    """Return a network's channel groups, what is frozen and why, and the budgets that can be reached.

    Args:
        model: a network, in evaluation mode; it is never changed, and need not be trained.
        input_shape: of one image, (channels, height, width).
        only: patterns of layers to admit.
        protect: patterns of layers to freeze.
        limits: the largest ratios of a group; budgets are those of static ratios.
        round_to: keep units in multiples of this.
        compensation: a name in `COMPENSATIONS`; some add biases, which cost parameters.

    Returns:
        Plain data. `macs` of the dense network. `groups`, each with `name`, `units`, `layers` (writers),
        `macs_share` (of the dense MACs, saved if it vanished; None where it is frozen), `frozen` (None or the
        reason) and `ungated` (None, or why it takes no gate). `budgets`: measure -> [smallest share, 1];
        latency is among them once its table was measured on the network's device.

    Raises:
        PruningError: the network cannot be traced, a pattern matches nothing, or a name is unknown.
    """
    whole = trace(model, input_shape)
    graph = restrict(whole, only=only, protect=protect)
    table = cached_table(model, whole)
    latency = None if table is None else LatencyPrices(graph, table)
    cost = CostModel(graph, model, shifts_bias=COMPENSATIONS[compensation].shifts_bias, latency=latency)
    names = (group.name for group in graph.prunable)
    shares = dict(zip(names, cost.vanishing_shares(CostModel.macs).tolist(), strict=True))
    groups = [
        {
            "name": group.name,
            "units": group.units,
            "layers": list(group.layers),
            "macs_share": shares.get(group.name),
            "frozen": group.frozen,
            "ungated": group.ungated,
        }
        for group in graph.groups
    ]
    reachable = smallest_shares(cost, limits, round_to=round_to) if graph.prunable else {}
    return {
        "macs": graph.macs,
        "groups": groups,
        "budgets": {name: [share, 1.0] for name, share in reachable.items()},
    }


def group_summary(network: PrunableNetwork, loo_gain: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Return what is known of each prunable group, as plain data.

    Its `name` and `units`, its `macs_share` and `params_share` of the dense network, the `errors` at a
    quarter, a half and three quarters (`error_curve`), and its `loo_gain`.

    Args:
        network: the network that the groups are of.
        loo_gain: leave-one-out gain of each group within a budget, [groups], see `UniformBaseline`.
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
