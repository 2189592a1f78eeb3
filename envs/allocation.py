"""Built-in allocations: how much to prune where, without learning."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prunegym.envs.budget import MEASURES, Budget, Limits
from prunegym.envs.budget_projection import BudgetProjection, Ratios, rounded_up
from prunegym.pruning.cost import Widths, plan_widths, widths_plan
from prunegym.pruning.errors import ImpossibleBudgetError, PlanError
from prunegym.pruning.graph import ChannelGraph
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.plan import LayerDecision, PruningPlan
from prunegym.pruning.registry import Registry

N_RATIOS = 46  # ratios looked at in each group

ALLOCATIONS: Registry[Callable[[PrunableNetwork, BudgetProjection], Widths]] = Registry("allocation")


@ALLOCATIONS.register("uniform")
def uniform_plan(network: PrunableNetwork, projection: BudgetProjection) -> Widths:
    """Return the units of each group, with the same static ratio everywhere within the budget."""
    return projection.complete(lambda step, even_ratio: even_ratio)


def even_plan(graph: ChannelGraph, static_ratio: float, runtime_ratio: float = 0.0) -> PruningPlan:
    """Return the plan with equal ratios for all groups; a runtime ratio only where there can be a gate."""
    return PruningPlan(
        {
            group.name: LayerDecision(static_ratio, 0.0 if group.ungated else runtime_ratio)
            for group in graph.prunable
        }
    )


def evenly_gated(
    network: PrunableNetwork, share: float, *, static_ratio: float, largest: float
) -> PruningPlan:
    """Return the plan with one static ratio everywhere, and one runtime ratio wherever there can be a gate.

    Args:
        network: the network to prune.
        share: share of the dense multiply-adds that may remain; the runtime ratio is the smallest that keeps
            to it.
        static_ratio: static ratio of every group.
        largest: the largest runtime ratio.

    Raises:
        PlanError: no group takes a gate.
        ImpossibleBudgetError: the largest runtime ratio is not enough.
    """
    groups = network.graph.prunable
    if all(group.ungated for group in groups):
        reasons = sorted({str(group.ungated) for group in groups})
        raise PlanError(f"no channel group takes a runtime gate: {'; '.join(reasons)}")

    def left(runtime: float) -> float:
        plan = even_plan(network.graph, static_ratio, runtime)
        widths = plan_widths(network.graph, plan, round_to=network.method.round_to)
        return network.cost.macs(widths) / network.cost.macs(network.cost.dense)

    if left(largest) > share:
        raise ImpossibleBudgetError(
            f"macs={share:g} cannot be met by skipping: the smallest is {rounded_up(left(largest))}, with "
            f"runtime ratios of {largest:g} and static ratios of {static_ratio:g}; raise one of them, or the "
            "budget"
        )
    low, high = 0.0, largest
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if left(middle) <= share else (middle, high)
    return even_plan(network.graph, static_ratio, high)


def static_plan(network: PrunableNetwork, share: float, *, max_static_ratio: float) -> PruningPlan:
    """Return the uniform plan without gates within a share of the dense multiply-adds.

    Raises:
        ImpossibleBudgetError: the largest static ratio is not enough.
    """
    limits = Limits(static=max_static_ratio, runtime=0.0)
    projection = BudgetProjection(
        network.cost, Budget({"macs": share}), limits, round_to=network.method.round_to
    )
    return widths_plan(network.graph, uniform_plan(network, projection))


@ALLOCATIONS.register("sensitivity")
def sensitivity_plan(network: PrunableNetwork, projection: BudgetProjection) -> Widths:
    """Return the units of each group that lose least by the error curves within the budget.

    Minimises the sum of the groups' losses (`error_curve`) under a price on what they cost, the price found
    by bisection (Lagrangian relaxation; Shoham & Gersho 1988). The losses are taken to add up.
    """
    ratios = np.linspace(0.0, projection.limits.static, N_RATIOS)
    losses = np.array(network.error_curves_at(tuple(ratios)))
    shares = np.sum(
        [network.cost.vanishing_shares(MEASURES[name]) for name in projection.budget.shares], axis=0
    )

    def ratios_at(log_price: float) -> Ratios:
        return ratios[(losses - np.exp(log_price) * shares[:, None] * ratios).argmin(1)]

    low, high = np.log(1e-6), np.log(1e6)
    for _ in range(40):  # to a millionth of a unit of the logarithm
        middle = (low + high) / 2
        low, high = (low, middle) if projection.fits_ratios(ratios_at(middle)) else (middle, high)
    found = ratios_at(high)
    return projection.complete(lambda step, even_ratio: found[step])
