"""What can be pruned in a network, how far, and what is known of each group before any decision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from prunegym.envs.budget import Limits
from prunegym.envs.budget_projection import smallest_shares
from prunegym.pruning.cost import CostModel
from prunegym.pruning.decisions import DecisionSpace, technique_kinds
from prunegym.pruning.graph.patterns import restrict
from prunegym.pruning.latency import LatencyPrices, cached_table
from prunegym.pruning.method import Method
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.surgery.verification import trace
from prunegym.pruning.technique import Subject


def describe(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    only: Sequence[str] = (),
    protect: Sequence[str] = (),
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    method: Method = Method(),  # noqa: B008 (frozen)
) -> dict[str, Any]:
    """Return what can be decided about a network, what cannot and why, and the budgets that can be reached.

    Args:
        model: a network, in evaluation mode; it is never changed, and need not be trained.
        input_shape: of one image, (channels, height, width).
        only: patterns of layers to admit.
        protect: patterns of layers to freeze.
        limits: how far techniques may go at a site; budgets are those of the even plan.
        method: how plans are applied: techniques, and compensations, some of which add biases that cost
            parameters.

    Returns:
        Plain data. `macs` of the dense network. `groups`, each with `name`, `units`, `layers` (writers),
        `macs_share` (of the dense MACs, saved if it vanished; None where it is frozen), `frozen` (None or the
        reason) and `ungated` (None, or why it takes no gate). `sites`, each with `name` and, by technique
        that is on, None or why it cannot decide there. `budgets`: measure -> [smallest share, 1]; latency is
        among them once its table was measured on the network's device. `unfollowed`: the `layers` in modules
        that were left whole, by name, each with the reason, and their `macs_share`.

    Raises:
        PruningError: the network cannot be traced, a pattern matches nothing, or a name is unknown.
    """
    whole = trace(model, input_shape)
    graph = restrict(whole, only=only, protect=protect)
    table = cached_table(model, whole)
    latency = None if table is None else LatencyPrices(graph, table)
    cost = _cost(Subject(model, graph, method), latency)
    shares: dict[str, float] = {}
    if cost is not None:
        names = (site.name for site in cost.space.sites)
        shares = dict(zip(names, cost.vanishing_shares("macs").tolist(), strict=True))
    groups = [
        {
            "name": group.name,
            "units": group.units,
            "layers": list(group.layers),
            "macs_share": None if group.frozen else shares.get(group.name),
            "frozen": group.frozen,
            "ungated": group.ungated,
        }
        for group in graph.groups
    ]
    reachable = {} if cost is None else smallest_shares(cost, limits)
    return {
        "macs": graph.macs,
        "groups": groups,
        "sites": [] if cost is None else cost.space.describe(),
        "unfollowed": {"layers": dict(graph.unfollowed), "macs_share": graph.other_macs / max(1, graph.macs)},
        "budgets": {name: [share, 1.0] for name, share in reachable.items()},
    }


def _cost(subject: Subject, latency: LatencyPrices | None) -> CostModel | None:
    """Return the prices of plans; None where nothing can be decided."""
    technique_kinds(subject.method.techniques)  # an unknown name is refused
    if not subject.graph.prunable and not set(subject.method.techniques) - {"channels", "gates"}:
        return None
    return CostModel(DecisionSpace(subject), latency=latency)


def site_summary(network: PrunableNetwork, loo_gain: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Return what is known of each site, as plain data.

    Its `name` and `units` (of its group, or outputs of its layer), its `macs_share` and `params_share` of the
    dense network, the `errors` of a group at a quarter, a half and three quarters (`error_curve`), and its
    `loo_gain`.

    Args:
        network: the network that the sites are of.
        loo_gain: leave-one-out gain of each site within a budget, [sites], see `UniformBaseline`.
    """
    columns = zip(
        network.space.sites,
        network.cost.vanishing_shares("macs").tolist(),
        network.cost.vanishing_shares("params").tolist(),
        network.error_curves,
        loo_gain.tolist(),
        strict=True,
    )
    return [
        {
            "name": site.name,
            "units": site.group.units if site.group else network.graph.layers[str(site.layer)].cout,
            "macs_share": macs,
            "params_share": params,
            "errors": list(errors),
            "loo_gain": loo_gain,
        }
        for site, macs, params, errors, loo_gain in columns
    ]
