"""Built-in allocations: how much to compress where, without learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from prunegym.envs.budget import Budget, Limits
from prunegym.envs.budget_projection import BudgetProjection, rounded_up
from prunegym.pruning.errors import ImpossibleBudgetError, PlanError
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.registry import Registry
from prunegym.pruning.technique import Levels

N_RATIOS = 46  # ratios looked at in each group

Ratios: TypeAlias = NDArray[np.float64]  # [sites], static

ALLOCATIONS: Registry[Callable[[PrunableNetwork, BudgetProjection], Levels]] = Registry("allocation")


@ALLOCATIONS.register("uniform")
def uniform_plan(network: PrunableNetwork, projection: BudgetProjection) -> Levels:
    """Return the even plan within the budget: every site is compressed alike."""
    return projection.complete(lambda step, even: even)


def evenly_gated(
    network: PrunableNetwork, share: float, *, static_ratio: float, largest: float
) -> CompressionPlan:
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

    def plan(runtime: float) -> CompressionPlan:
        return network.space.even_plan({"channels": static_ratio, "gates": runtime})

    def left(runtime: float) -> float:
        return network.cost.shares(network.space.levels(plan(runtime)))["macs"]

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
    return plan(high)


def static_plan(network: PrunableNetwork, share: float, *, max_static_ratio: float) -> CompressionPlan:
    """Return the uniform plan without gates within a share of the dense multiply-adds.

    Raises:
        ImpossibleBudgetError: the largest static ratio is not enough.
    """
    limits = Limits({"static_ratio": max_static_ratio})
    projection = BudgetProjection(network.cost, Budget({"macs": share}), limits)
    return network.space.plan(uniform_plan(network, projection))


@ALLOCATIONS.register("sensitivity")
def sensitivity_plan(network: PrunableNetwork, projection: BudgetProjection) -> Levels:
    """Return the levels of static pruning that loses least by the error curves within the budget.

    Minimises the sum of the sites' losses (`error_curve`) under a price on what they cost, the price found
    by bisection (Lagrangian relaxation; Shoham & Gersho 1988). The losses are taken to add up. Techniques
    other than `channels` are as in the even plan.

    Raises:
        PlanError: the technique `channels` is not on.
    """
    channels = next((one for one in network.space.techniques if one.name == "channels"), None)
    if channels is None:
        raise PlanError("the allocation sensitivity sets static ratios; add the technique channels")
    ratios = np.linspace(0.0, projection.limits.of(channels), N_RATIOS)
    losses = np.array(network.error_curves_at(tuple(ratios)))
    shares = np.sum([network.cost.vanishing_shares(name) for name in projection.budget.shares], axis=0)

    def ratios_at(log_price: float) -> Ratios:
        return ratios[(losses - np.exp(log_price) * shares[:, None] * ratios).argmin(1)]

    def fits(found: Ratios) -> bool:
        return projection.fits(network.space.levels_of([{"channels": float(ratio)} for ratio in found]))

    low, high = np.log(1e-6), np.log(1e6)
    for _ in range(40):  # to a millionth of a unit of the logarithm
        middle = (low + high) / 2
        low, high = (low, middle) if fits(ratios_at(middle)) else (middle, high)
    found = ratios_at(high)
    return projection.complete(lambda step, even: {**even, "channels": float(found[step])})
