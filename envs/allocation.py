"""Built-in allocations: how much to prune where, without learning."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from envs.budget import MEASURES
from envs.budget_keeper import BudgetKeeper, Ratios
from pruning.cost import Widths
from pruning.prunable import PrunableNetwork
from pruning.registry import Registry

STEPS = 46  # ratios looked at in each group

ALLOCATIONS: Registry[Callable[[PrunableNetwork, BudgetKeeper], Widths]] = Registry("allocation")


@ALLOCATIONS.register("uniform")
def uniform_plan(network: PrunableNetwork, keeper: BudgetKeeper) -> Widths:
    """Return the units of each group, with the same static ratio everywhere within the budget."""
    return keeper.follow(lambda step, even_ratio: even_ratio)


@ALLOCATIONS.register("sensitivity")
def sensitivity_plan(network: PrunableNetwork, keeper: BudgetKeeper) -> Widths:
    """Return the units of each group that lose least by the error curves within the budget.

    Minimises the sum of the groups' losses (`error_curve`) under a price on what they cost, the price found
    by bisection (Lagrangian relaxation; Shoham & Gersho 1988). The losses are taken to add up.
    """
    ratios = np.linspace(0.0, keeper.limits.static, STEPS)
    losses = np.array(network.error_curves_at(tuple(ratios)))
    shares = np.sum([network.cost.vanishing_shares(MEASURES[name]) for name in keeper.budget.shares], axis=0)

    def wished(log_price: float) -> Ratios:
        return ratios[(losses - np.exp(log_price) * shares[:, None] * ratios).argmin(1)]

    low, high = np.log(1e-6), np.log(1e6)
    for _ in range(40):  # to a millionth of a unit of the logarithm
        middle = (low + high) / 2
        low, high = (low, middle) if keeper.fits_ratios(wished(middle)) else (middle, high)
    found = wished(high)
    return keeper.follow(lambda step, even_ratio: found[step])
