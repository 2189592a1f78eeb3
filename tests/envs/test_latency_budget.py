"""Budgets of latency, priced by tables of devices that take what they are said to take."""

import math
from functools import cache

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from prunegym.envs.allocation import ALLOCATIONS
from prunegym.envs.budget import Budget, Limits
from prunegym.envs.budget_projection import BudgetProjection, smallest_shares
from prunegym.pruning.cost import CostModel
from prunegym.pruning.errors import BudgetError, ImpossibleBudgetError
from prunegym.pruning.latency import LatencyPrices
from prunegym.pruning.latency.layers import layer_grids
from prunegym.pruning.latency.measuring import measure_table
from prunegym.pruning.method import Method
from tests.envs.conftest import features_of, make_small_env
from tests.pruning.latency.devices import additive, noisy
from tests.pruning.oracles import example
from tests.pruning.plans import levels_of, space_of

NETWORKS = ("projected", "plain", "concat", "flatten", "grouped", "depthwise")


@cache
def table_of(name, device=additive):
    model, graph, _ = example(name)
    return measure_table(model, graph, layer_grids(model, graph), {}, time_of=device)


@cache
def noisy_cost(name, round_to=1):
    model, graph, _ = example(name)
    space = space_of(model, graph, Method(round_to=round_to))
    return CostModel(space, latency=LatencyPrices(graph, table_of(name, noisy()))), graph


def timed_env(name="residual", **settings):
    return make_small_env(name, **{"budget": {"latency": 0.6}, "latency": table_of(name), **settings})


@settings(max_examples=100)
@given(st.sampled_from(NETWORKS), st.floats(0.0, 1.0), st.sampled_from([1, 1, 2, 4]), st.data())
def test_a_finished_plan_is_never_above_the_budget_and_uses_it_up(network, place, round_to, data):
    cost, graph = noisy_cost(network, round_to)
    smallest = smallest_shares(cost, Limits())["latency"]
    share = smallest + place * (1 - smallest)
    projection = BudgetProjection(cost, Budget({"latency": share}), Limits())
    wish = lambda step, even: {"channels": data.draw(st.floats(0.0, 0.9))}  # noqa: E731
    kept = projection.complete(wish)["channels"].tolist()
    most = math.floor(share * cost.price("latency", cost.dense) + 1e-6)
    units = [group.units for group in graph.prunable]
    assert cost.price("latency", levels_of(kept)) <= most
    assert all(stay == whole or stay % round_to == 0 for stay, whole in zip(kept, units, strict=True))
    pruned = [place for place, stay in enumerate(kept) if stay < units[place]]
    if pruned:  # the groups after the last of these are whole: only it could make up for what is left
        last = pruned[-1]
        kept[last] = min(units[last], (kept[last] // round_to + 1) * round_to)
        assert cost.price("latency", levels_of(kept)) > most


def test_latency_has_no_price_and_no_reachable_budget_before_there_is_a_table():
    model, graph, _ = example("residual")
    cost = CostModel(space_of(model, graph))
    assert list(smallest_shares(cost, Limits())) == ["macs", "params", "bytes", "bops"]
    with pytest.raises(
        BudgetError, match=r"budget latency: it has no price here; measure .* `prunegym latency`"
    ):
        BudgetProjection(cost, Budget({"latency": 0.5}), Limits())


def test_a_budget_that_the_rest_of_the_network_exceeds_is_impossible():
    cost, _ = noisy_cost("projected")
    with pytest.raises(ImpossibleBudgetError, match=r"latency=0\.01 cannot be reached: the smallest is 0\."):
        BudgetProjection(cost, Budget({"latency": 0.01}), Limits())


@pytest.mark.parametrize("allocation", list(ALLOCATIONS))
def test_what_an_allocation_decides_takes_no_longer_than_it_may(allocation):
    env = timed_env(budget={"latency": 0.6, "params": 0.7})
    plan = env.problem.allocation(allocation)
    small, image = env.problem.apply(plan), example("residual")[2][:1]
    took = additive(small, image) / additive(env.problem.network.model, image)
    assert took <= 0.6 + 1e-6
    assert env.problem.shares(plan)["latency"] == pytest.approx(took, abs=1e-6)
    assert env.problem.shares(plan)["params"] <= 0.7


def test_episodes_keep_to_a_latency_budget_without_gates():
    env = timed_env()
    check_env(env, skip_render_check=True)
    env.reset(seed=0)
    done, info = False, {}
    while not done:
        _, _, done, _, info = env.step(np.ones(2, dtype=np.float32))
    plan = info["episode_result"]["plan"]
    assert env.problem.shares(plan)["latency"] <= 0.6
    assert all(decision.get("runtime_ratio", 0.0) == 0 for decision in plan.values())


def test_gates_come_back_with_another_budget():
    env = timed_env()
    gates = env.techniques.index("gates")
    assert not env.admitted[:, gates].any()
    env.set_budget(Budget({"macs": 0.6}))
    assert (env.admitted == make_small_env("residual").admitted).all()
    assert env.admitted[:, gates].any()


@pytest.mark.usefixtures("features_alone")
def test_shares_of_latency_are_seen_once_it_has_a_price():
    env = timed_env()
    seen = features_of(env, env.reset(seed=0)[0])
    saved = env.problem.network.cost.vanishing_shares("latency")
    assert (seen.budget_latency, seen.budget_macs) == (pytest.approx(0.6), 1.0)
    assert seen.share_latency**2 == pytest.approx(saved[0], rel=1e-5)
    assert seen.to_come_latency == pytest.approx(min(1.0, saved.sum()), rel=1e-5)
    assert seen.now_latency == 1.0
    without = make_small_env("residual")
    by_macs = features_of(without, without.reset(seed=0)[0])
    assert (by_macs.share_latency, by_macs.now_latency, by_macs.to_come_latency) == (0.0, 0.0, 0.0)
    assert by_macs.share_macs == seen.share_macs != seen.share_latency


def test_without_a_table_that_of_the_device_is_measured_or_read(monkeypatch):
    asked = []

    def found(model, graph):
        asked.append(graph.prunable)
        return table_of("residual")

    monkeypatch.setattr("prunegym.pruning.network.latency_table", found)
    env = timed_env(latency=None, protect=["a.0"])
    assert len(asked) == 1
    assert len(asked[0]) > len(env.site_names)  # a table serves whatever patterns leave
    env.set_budget(Budget({"latency": 0.9}))
    assert len(asked) == 1
