import re

import numpy as np
import pytest
from torch import nn

from prunegym.envs.allocation import (
    ALLOCATIONS,
    evenly_gated,
    sensitivity_plan,
    static_plan,
    uniform_plan,
)
from prunegym.envs.budget import Budget, Limits
from prunegym.envs.budget_projection import BudgetProjection
from prunegym.pruning.calibration.statistics import real_images
from prunegym.pruning.errors import ImpossibleBudgetError, PlanError, UnknownNameError
from prunegym.pruning.method import Method
from prunegym.pruning.network import PrunableNetwork
from tests.envs.conftest import labelled, make_small_env
from tests.pruning.example_networks import EXAMPLES, Head, randomised, unit
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
    ratios = [one["static_ratio"] for one in env.problem.allocation(name).values()]
    return tuple(round(units * (1 - ratio)) for units, ratio in zip(WIDE, ratios, strict=True))


@pytest.mark.parametrize("name", list(ALLOCATIONS))
@pytest.mark.parametrize("budget", [{"macs": 0.4}, {"params": 0.6}, {"macs": 0.7, "params": 0.5}])
@pytest.mark.parametrize("network", ["plain", "residual", "padded", "concat", "grouped", "bias-free"])
def test_an_allocation_is_within_the_budget_as_counted_on_the_network_that_comes_out(name, budget, network):
    env = make_small_env(network, budget=budget)
    model, images, _ = labelled(network)
    small = env.problem.apply(env.problem.allocation(name))
    macs = counted_macs(small, images[0]) / counted_macs(model, images[0])
    params = counted_params(small) / counted_params(model)
    assert macs <= budget.get("macs", 1.0)
    assert params <= budget.get("params", 1.0)
    # and not wasted: these networks are narrow, one unit of the last groups is a lot
    assert macs > 0.7 * budget.get("macs", 0.0) or params > 0.7 * budget.get("params", 0.0)


def test_the_uniform_allocation_is_what_actions_of_zero_make():
    env = wide_env(budget={"macs": 0.4})
    env.reset()
    for _ in env.site_names:
        *_, info = env.step(np.zeros(2, dtype=np.float32))
    assert env.problem.allocation("uniform") == info["episode_result"]["plan"]


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("weights", [(1, 1), (1, 4), (4, 1)])
def test_with_known_convex_losses_no_plan_within_the_budget_is_much_better(monkeypatch, weights, share):
    env = wide_env(budget={"macs": share})
    curves = lambda ratios: tuple(tuple(weight * r**2 for r in ratios) for weight in weights)  # noqa: E731
    monkeypatch.setattr(env.problem.network, "error_curves_at", curves)

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
        env.problem.network.error_curves_at([1 - kept / units for kept in range(1, units + 1)])[group]
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
        env.problem.network, "error_curves_at", lambda ratios: (tuple(0.0 for _ in ratios), tuple(ratios))
    )
    projection = BudgetProjection(env.problem.network.cost, Budget({"macs": 0.5}), Limits())
    spared, uniform = (
        plan(env.problem.network, projection)["channels"] for plan in (sensitivity_plan, uniform_plan)
    )
    assert spared[0] < uniform[0]
    assert spared[1] >= WIDE[1] - 1 > uniform[1]  # the budget is used up to a unit


def test_an_unknown_allocation_is_refused_with_the_nearest_name(small_env):
    with pytest.raises(UnknownNameError, match=r"no allocation named 'unifrom'\. Did you mean 'uniform'\?"):
        small_env().problem.allocation("unifrom")


def prunable_network(name="plain", model=None, **method):
    model = EXAMPLES[name].model() if model is None else model
    return PrunableNetwork(model, real_images(model, [EXAMPLES[name].images(8)]), method=Method(**method))


def wide_network(**method):
    return prunable_network(
        model=nn.Sequential(unit(3, WIDE[0]), unit(WIDE[0], WIDE[1]), Head(WIDE[1])), **method
    )


def wide_gated_macs(kept, executed):
    """With a gate wherever not all units run."""
    gates = [inputs * units for inputs, units in ((3, kept[0]), (kept[0], kept[1]))]
    gated = [runs < units for runs, units in zip(executed, kept, strict=True)]
    return wide_macs(*executed) + sum(one for one, there in zip(gates, gated, strict=True) if there)


def kept_of(units, ratio):
    return max(1, int(units * (1 - ratio) + 0.5))


@pytest.mark.parametrize("share", [0.3, 0.45, 0.6, 0.8])
@pytest.mark.parametrize("static", [0.0, 0.1])
def test_gates_with_one_ratio_meet_the_budget_and_one_unit_more_would_not(share, static):
    plan = evenly_gated(wide_network(), share, static_ratio=static, largest=0.9)
    first, second = plan.decisions.values()
    assert first == second
    assert first["static_ratio"] == static
    ratio = first["runtime_ratio"]
    kept = [kept_of(units, static) for units in WIDE]

    def left(ratio):
        return wide_gated_macs(kept, [kept_of(units, ratio) for units in kept]) / wide_macs(*WIDE)

    assert left(ratio) <= share
    # ratios at which a group comes to have one unit less
    steps = [(units - runs + 0.5) / units for units in kept for runs in range(1, units + 1)]
    last = max(step for step in steps if step <= ratio + 1e-6)
    assert ratio == pytest.approx(last, abs=1e-6)  # no more than it takes
    assert left(last - 1e-6) > share


def test_only_groups_that_take_a_gate_get_a_runtime_ratio():
    network = prunable_network("residual")
    plan = evenly_gated(network, 0.8, static_ratio=0.1, largest=0.9)
    for group in network.graph.prunable:
        assert plan[group.name]["static_ratio"] == 0.1
        assert (plan[group.name].get("runtime_ratio", 0.0) > 0) == (group.ungated is None)


def test_static_ratios_that_do_by_themselves_need_no_gates():
    network = wide_network()
    plan = evenly_gated(network, 0.5, static_ratio=0.5, largest=0.9)
    levels = network.space.levels(plan)
    assert levels["gates"].tolist() == levels["channels"].tolist() == [12, 10]


def test_units_are_rounded_as_the_networks_method_says():
    network = wide_network(round_to=8)
    plan = evenly_gated(network, 0.45, static_ratio=0.3, largest=0.9)
    assert network.space.levels(plan)["channels"].tolist() == [16, 16]
    executed = network.space.levels(plan)["gates"].tolist()
    assert wide_gated_macs((16, 16), executed) <= 0.45 * wide_macs(*WIDE)
    ratio = plan["0.0"]["runtime_ratio"] - 1e-3
    assert wide_gated_macs((16, 16), [kept_of(16, ratio)] * 2) > 0.45 * wide_macs(*WIDE)


def test_a_network_that_takes_no_gate_is_refused_in_one_line():
    with pytest.raises(PlanError, match=r"no channel group takes a runtime gate: several layers") as caught:
        evenly_gated(prunable_network("layer-scale"), 0.5, static_ratio=0.0, largest=0.9)
    assert "\n" not in str(caught.value)


def test_a_budget_that_gates_cannot_meet_is_refused_in_one_line_with_what_they_can():
    network = wide_network()
    with pytest.raises(ImpossibleBudgetError, match=r"macs=0\.1 cannot be met by skipping") as caught:
        evenly_gated(network, 0.1, static_ratio=0.0, largest=0.5)
    assert "\n" not in str(caught.value)
    smallest = wide_gated_macs(WIDE, [12, 10]) / wide_macs(*WIDE)
    named = float(re.search(r"0\.\d{4}", str(caught.value))[0])
    assert smallest <= named < smallest + 1e-4
    evenly_gated(network, named, static_ratio=0.0, largest=0.5)  # and it can be asked for


def test_an_even_plan_has_the_same_amounts_for_all_and_gates_only_where_there_can_be_some():
    space = prunable_network("residual").space
    plan = space.even_plan({"channels": 0.25, "gates": 0.5})
    assert [site.name for site in space.sites] == list(plan.decisions)
    for site in space.sites:
        gate = {} if site.group.ungated else {"runtime_ratio": 0.5}
        assert plan[site.name] == {"static_ratio": 0.25, **gate}
    static = space.even_plan({"channels": 0.25})
    assert {one.get("runtime_ratio", 0.0) for one in static.decisions.values()} == {0.0}


def test_a_static_plan_is_the_uniform_one_within_the_budget_without_gates():
    network, env = (
        wide_network(),
        wide_env(budget={"macs": 0.4}, limits=Limits({"static_ratio": 0.9, "runtime_ratio": 0.0})),
    )
    plan = static_plan(network, 0.4, max_static_ratio=0.9)
    assert plan.to_dict() == env.problem.allocation("uniform")
    with pytest.raises(ImpossibleBudgetError):
        static_plan(network, 0.4, max_static_ratio=0.1)
