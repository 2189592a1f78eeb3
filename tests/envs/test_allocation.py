import numpy as np
import pytest
from torch import nn

from envs.allocation import ALLOCATIONS, sensitivity_plan, uniform_plan
from envs.budget import Budget, Limits
from envs.budget_keeper import BudgetKeeper
from pruning.errors import UnknownNameError
from tests.envs.conftest import labelled, make_small_env
from tests.pruning.example_networks import Head, randomised, unit
from tests.pruning.oracles import counted_macs, counted_params

WIDE = (24, 20)  # units of the two groups


def wide_env(seed=0, **settings):
    model = randomised(nn.Sequential(unit(3, WIDE[0]), unit(WIDE[0], WIDE[1]), Head(WIDE[1])), seed)
    return make_small_env("plain", model=model, **settings)


def wide_macs(first, second):
    return 9 * 3 * first * 36 + 9 * first * second * 36 + second * 5


def grid(share):
    """Every pair of widths within a share of the MACs."""
    room = share * wide_macs(*WIDE)
    pairs = [(a, b) for a in range(1, WIDE[0] + 1) for b in range(1, WIDE[1] + 1)]
    return [pair for pair in pairs if wide_macs(*pair) <= room]


def widths(env, name):
    ratios = [one["static_ratio"] for one in env.allocation(name).values()]
    return tuple(round(units * (1 - ratio)) for units, ratio in zip(WIDE, ratios, strict=True))


@pytest.mark.parametrize("name", list(ALLOCATIONS))
@pytest.mark.parametrize("budget", [{"macs": 0.4}, {"params": 0.6}, {"macs": 0.7, "params": 0.5}])
@pytest.mark.parametrize("network", ["plain", "residual", "padded", "concat", "grouped", "bias-free"])
def test_an_allocation_is_within_the_budget_as_counted_on_the_network_that_comes_out(name, budget, network):
    env = make_small_env(network, budget=budget)
    model, images, _ = labelled(network)
    small = env.carry_out(env.allocation(name))
    macs = counted_macs(small, images[0]) / counted_macs(model, images[0])
    params = counted_params(small) / counted_params(model)
    assert macs <= budget.get("macs", 1.0)
    assert params <= budget.get("params", 1.0)
    # and not wasted: these networks are narrow, one unit of the last groups is a lot
    assert macs > 0.7 * budget.get("macs", 0.0) or params > 0.7 * budget.get("params", 0.0)


def test_the_uniform_allocation_is_what_actions_of_zero_make():
    env = wide_env(budget={"macs": 0.4})
    env.reset()
    for _ in env.group_names:
        *_, info = env.step(np.zeros(2, dtype=np.float32))
    assert env.allocation("uniform") == info["episode_result"]["plan"]


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("weights", [(1, 1), (1, 4), (4, 1)])
def test_with_known_convex_losses_no_plan_within_the_budget_is_much_better(monkeypatch, weights, share):
    env = wide_env(budget={"macs": share})
    curves = lambda ratios: tuple(tuple(weight * r**2 for r in ratios) for weight in weights)  # noqa: E731
    monkeypatch.setattr(env.network, "error_curves_at", curves)

    def loss(pair):
        return sum(w * (1 - kept / units) ** 2 for w, kept, units in zip(weights, pair, WIDE, strict=True))

    least = min(map(loss, grid(share)))
    # a price is linear in the ratios, MACs are bilinear: where little may remain they part
    assert least <= loss(widths(env, "sensitivity")) <= (1.15 if share < 0.5 else 1.02) * least


@pytest.mark.parametrize("share", [0.4, 0.5, 0.6, 0.7, 0.8])
@pytest.mark.parametrize("seed", range(3))
def test_with_measured_losses_no_plan_with_a_tenth_less_to_spend_is_better(seed, share):
    env = wide_env(seed, budget={"macs": share})
    curves = [
        env.network.error_curves_at([1 - kept / units for kept in range(1, units + 1)])[group]
        for group, units in enumerate(WIDE)
    ]

    def loss(pair):
        return curves[0][pair[0] - 1] + curves[1][pair[1] - 1]

    found = loss(widths(env, "sensitivity"))
    # measured curves are not convex, and what lies in their dents no price can find
    assert min(map(loss, grid(share))) <= found <= min(map(loss, grid(share - 0.1)))


def test_the_sensitivity_plan_spares_the_group_that_matters(monkeypatch):
    env = wide_env(budget={"macs": 0.5})
    monkeypatch.setattr(
        env.network, "error_curves_at", lambda ratios: (tuple(0.0 for _ in ratios), tuple(ratios))
    )
    keeper = BudgetKeeper(env.network.cost, Budget({"macs": 0.5}), Limits())
    spared, uniform = (plan(env.network, keeper).kept for plan in (sensitivity_plan, uniform_plan))
    assert spared[0] < uniform[0]
    assert spared[1] >= WIDE[1] - 1 > uniform[1]  # the budget is used up to a unit


def test_an_unknown_allocation_is_refused_with_the_nearest_name(small_env):
    with pytest.raises(UnknownNameError, match=r"no allocation named 'unifrom'\. Did you mean 'uniform'\?"):
        small_env().allocation("unifrom")
