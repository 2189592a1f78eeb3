"""Budgets of latency, priced by tables of devices that take what they are said to take."""

import math
from functools import cache

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from prunegym.envs.allocation import ALLOCATIONS
from prunegym.envs.budget import Budget, BudgetRange, Limits, leading_measure, priced
from prunegym.envs.budget_projection import BudgetProjection, smallest_shares
from prunegym.envs.observation import LayerObservation
from prunegym.pruning.cost import CostModel, Widths
from prunegym.pruning.errors import BudgetError, ImpossibleBudgetError
from prunegym.pruning.latency import LatencyPrices
from prunegym.pruning.latency.layers import layer_grids
from prunegym.pruning.latency.measuring import measure_table
from tests.envs.conftest import make_small_env
from tests.pruning.latency.devices import additive, noisy
from tests.pruning.oracles import example

NETWORKS = ("projected", "plain", "concat", "flatten", "grouped", "depthwise")


@cache
def table_of(name, device=additive):
    model, graph, _ = example(name)
    return measure_table(model, graph, layer_grids(model, graph), {}, time_of=device)


@cache
def noisy_cost(name):
    model, graph, _ = example(name)
    return CostModel(graph, model, latency=LatencyPrices(graph, table_of(name, noisy()))), graph


def timed_env(name="residual", **settings):
    return make_small_env(name, **{"budget": {"latency": 0.6}, "latency": table_of(name), **settings})


@settings(max_examples=100)
@given(st.sampled_from(NETWORKS), st.floats(0.0, 1.0), st.sampled_from([1, 1, 2, 4]), st.data())
def test_a_finished_plan_is_never_above_the_budget_and_uses_it_up(network, place, round_to, data):
    cost, graph = noisy_cost(network)
    smallest = smallest_shares(cost, Limits(), round_to=round_to)["latency"]
    share = smallest + place * (1 - smallest)
    projection = BudgetProjection(cost, Budget({"latency": share}), Limits(), round_to=round_to)
    kept = projection.complete(lambda step, even: data.draw(st.floats(0.0, 0.9))).kept.tolist()
    most = math.floor(share * cost.latency(cost.dense) + 1e-6)
    units = [group.units for group in graph.prunable]
    assert cost.latency(Widths(np.array(kept), np.array(kept))) <= most
    assert all(stay == whole or stay % round_to == 0 for stay, whole in zip(kept, units, strict=True))
    pruned = [place for place, stay in enumerate(kept) if stay < units[place]]
    if pruned:  # the groups after the last of these are whole: only it could make up for what is left
        last = pruned[-1]
        kept[last] = min(units[last], (kept[last] // round_to + 1) * round_to)
        assert cost.latency(Widths(np.array(kept), np.array(kept))) > most


def test_latency_has_no_price_and_no_reachable_budget_before_there_is_a_table():
    model, graph, _ = example("residual")
    cost = CostModel(graph, model)
    assert list(priced(cost)) == list(smallest_shares(cost, Limits())) == ["macs", "params"]
    with pytest.raises(BudgetError, match="table"):
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
    assert all(decision["runtime_ratio"] == 0 for decision in plan.values())


def test_gates_come_back_with_another_budget():
    env = timed_env()
    assert not any(env.gated)
    env.set_budget(Budget({"macs": 0.6}))
    assert env.gated == make_small_env("residual").gated
    assert any(env.gated)


@pytest.mark.usefixtures("features_alone")
def test_shares_of_latency_are_seen_where_the_budget_names_it():
    env = timed_env()
    seen = LayerObservation(*env.reset(seed=0)[0].tolist())
    cost = env.problem.network.cost
    saved = cost.vanishing_shares(CostModel.latency)
    assert seen.macs_budget == pytest.approx(0.6)
    assert seen.macs_share**2 == pytest.approx(saved[0], rel=1e-5)
    assert seen.macs_to_come == pytest.approx(min(1.0, saved.sum()), rel=1e-5)
    assert seen.macs_now == 1.0
    by_macs = LayerObservation(*make_small_env("residual").reset(seed=0)[0].tolist())
    assert seen.macs_share != by_macs.macs_share


def test_the_budget_says_what_leads():
    assert leading_measure(Budget({"macs": 0.5, "latency": 0.7})) == "latency"
    assert leading_measure(BudgetRange(Budget({"latency": 0.5}), Budget({"latency": 0.7}))) == "latency"
    assert leading_measure(Budget({"params": 0.5})) == "macs"


def test_without_a_table_that_of_the_device_is_measured_or_read(monkeypatch):
    asked = []

    def found(model, graph):
        asked.append(graph.prunable)
        return table_of("residual")

    monkeypatch.setattr("prunegym.pruning.network.latency_table", found)
    env = timed_env(latency=None, protect=["a.0"])
    assert len(asked) == 1
    assert len(asked[0]) > len(env.group_names)  # a table serves whatever patterns leave
    env.set_budget(Budget({"latency": 0.9}))
    assert len(asked) == 1
