import math
import re
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunegym.envs.budget import Budget, BudgetRange, Limits, parse_budget
from prunegym.envs.budget_projection import BudgetProjection, rounded_up, smallest_shares
from prunegym.pruning.cost import CostModel
from prunegym.pruning.decisions import DecisionSpace
from prunegym.pruning.errors import BudgetError, ImpossibleBudgetError
from prunegym.pruning.graph import find_groups
from prunegym.pruning.method import Method
from prunegym.pruning.networks.registry import resolve_network
from prunegym.pruning.plan import kept_units
from prunegym.pruning.technique import Subject
from tests.pruning.oracles import example
from tests.pruning.plans import levels_of

NETWORKS = ("projected", "plain", "concat", "flatten", "grouped", "bias-free")
MEASURES = ("macs", "params", "bytes")
unit_shares = st.floats(0.0, 1.0)


@cache
def cost_of(name, round_to=1):
    model, graph, _ = example(name)
    return prices_of(model, graph, round_to), graph


def prices_of(model, graph, round_to=1):
    method = Method(compensation="least-squares", round_to=round_to)
    return CostModel(DecisionSpace(Subject(model, graph, method)))


@cache
def digits_cost(round_to=1):
    """Of a network whose groups are wide enough for a ratio to mean something."""
    network = resolve_network("digits_resnet")
    model = network.build().eval()
    graph = find_groups(model, network.input_shape)
    return prices_of(model, graph, round_to), graph


def play(projection, wishes):
    """Decide every group; wishes: (static or None for the even ratio, runtime) per group."""
    levels = {name: of_sites.copy() for name, of_sites in projection.space.neutral.items()}
    for step, (static, runtime) in enumerate(wishes):
        even = projection.even(step, levels)["channels"]
        wish = {"channels": even if static is None else static, "gates": runtime}
        for name, level in projection.project(step, levels, wish).items():
            levels[name][step] = level
    return levels


def even_ratio(projection):
    return projection.even(0, projection.space.neutral)["channels"]


def budgets_within_reach(cost, shares):
    smallest = smallest_shares(cost, Limits())
    return {name: smallest[name] + share * (1 - smallest[name]) for name, share in shares.items()}


def is_over(cost, budget, kept, executed):
    levels = levels_of(kept, executed)
    return any(
        cost.price(name, levels) > math.floor(budget[name] * cost.price(name, cost.dense) + 1e-6)
        for name in MEASURES
        if name in budget
    )


def with_one_more(units, kept, executed, position, runtime, round_to):
    """The plan with the next larger choice at one group, by the same share skipped."""
    kept, executed = list(kept), list(executed)
    if kept[position] < units[position]:
        share = runtime if executed[position] == kept_units(kept[position], runtime) else 0.0
        kept[position] = min(units[position], (kept[position] // round_to + 1) * round_to)
        executed[position] = kept_units(kept[position], share)
    else:
        executed[position] += 1
    return kept, executed


class Episode(NamedTuple):
    network: str
    budget: dict[str, float]
    round_to: int
    wishes: list[tuple[float | None, float]]


@st.composite
def episodes(draw):
    network = draw(st.sampled_from(NETWORKS))
    round_to = draw(st.sampled_from([1, 1, 2, 3]))
    cost, graph = cost_of(network, round_to)
    names = draw(st.sets(st.sampled_from(MEASURES), min_size=1))
    budget = budgets_within_reach(cost, {name: draw(unit_shares) for name in sorted(names)})
    static, runtime = st.floats(0.0, 0.9) | st.none(), st.floats(0.0, 0.5)
    wishes = [(draw(static), 0.0 if group.ungated else draw(runtime)) for group in graph.prunable]
    return Episode(network, budget, round_to, wishes)


@settings(max_examples=200)
@given(episodes())
def test_a_finished_plan_is_never_above_a_budget_and_uses_the_binding_one_up(episode):
    cost, graph = cost_of(episode.network, episode.round_to)
    projection = BudgetProjection(cost, Budget(episode.budget), Limits())
    levels = play(projection, episode.wishes)
    kept, executed = levels["channels"].tolist(), levels["gates"].tolist()
    units = [group.units for group in graph.prunable]
    assert not is_over(cost, episode.budget, kept, executed)
    assert all(1 <= run <= stay <= most for run, stay, most in zip(executed, kept, units, strict=True))
    assert all(stay == most or stay % episode.round_to == 0 for stay, most in zip(kept, units, strict=True))
    pruned = [i for i, run in enumerate(executed) if run < units[i]]
    if pruned:  # the groups after the last of these are whole: only it could make up for what is left
        last = pruned[-1]
        more = with_one_more(units, kept, executed, last, episode.wishes[last][1], episode.round_to)
        assert is_over(cost, episode.budget, *more)


@settings(max_examples=100)
@given(st.sampled_from(NETWORKS), st.floats(0.0, 0.999), st.sampled_from(MEASURES))
def test_the_even_ratio_is_the_smallest_that_meets_the_budget(network, share, measure):
    cost, graph = cost_of(network)
    budget = budgets_within_reach(cost, {measure: share})
    ratio = even_ratio(BudgetProjection(cost, Budget(budget), Limits()))

    def over_at(even):
        counts = [kept_units(group.units, even) for group in graph.prunable]
        return is_over(cost, budget, counts, counts)

    assert not over_at(ratio)
    assert ratio == 0.0 or over_at(ratio - 1e-8)


@settings(max_examples=50)
@given(unit_shares)
def test_even_wishes_make_the_uniform_plan(share):
    cost, graph = digits_cost()
    projection = BudgetProjection(cost, Budget(budgets_within_reach(cost, {"macs": share})), Limits())
    levels = play(projection, [(None, 0.0)] * len(graph.prunable))
    assert (levels["gates"] == levels["channels"]).all()
    # the later groups make up for what rounding the earlier ones to whole units left over
    left = levels["channels"] / projection.space.neutral["channels"]
    np.testing.assert_allclose(left, 1 - even_ratio(projection), atol=0.1)


def test_a_budget_of_everything_leaves_the_network_whole():
    cost, graph = cost_of("projected")
    projection = BudgetProjection(cost, Budget({"macs": 1.0, "params": 1.0}), Limits())
    levels = play(projection, [(0.9, 0.0)] * len(graph.prunable))
    assert (levels["gates"] == cost.dense["channels"]).all()


def test_of_two_budgets_the_tighter_one_sets_the_even_ratio_and_both_hold():
    cost, _ = cost_of("projected")

    def ratio(**shares):
        return even_ratio(BudgetProjection(cost, Budget(shares), Limits()))

    assert ratio(macs=0.3, params=0.9) == ratio(macs=0.3) > ratio(macs=0.9, params=0.9)
    assert ratio(macs=0.9, params=0.3) == ratio(params=0.3) > ratio(macs=0.9)


def test_units_are_kept_in_multiples_where_asked():
    cost, graph = digits_cost(round_to=8)
    projection = BudgetProjection(cost, Budget({"macs": 0.6}), Limits())
    kept = play(projection, [(0.35, 0.0)] * len(graph.prunable))["channels"]
    assert (kept % 8 == 0).all()
    assert kept[0] == 8  # of 16, asked for 10.4


@pytest.mark.parametrize("round_to", [1, 2])
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("network", NETWORKS)
def test_an_impossible_budget_names_the_smallest_share_which_is_reachable(network, measure, round_to):
    cost, _ = cost_of(network, round_to)
    with pytest.raises(ImpossibleBudgetError, match=f"{measure}=0.0001 cannot be reached") as caught:
        BudgetProjection(cost, Budget({measure: 0.0001}), Limits())
    assert "\n" not in str(caught.value)
    named = float(re.search(r"smallest is ([\d.]+)", str(caught.value))[1])
    projection = BudgetProjection(cost, Budget({measure: named}), Limits())
    assert even_ratio(projection) <= 0.9
    with pytest.raises(ImpossibleBudgetError):
        BudgetProjection(cost, Budget({measure: named - 0.0002}), Limits())


def test_a_share_is_rounded_up():
    assert [rounded_up(share) for share in (0.01321, 0.0132, 0.25)] == ["0.0133", "0.0132", "0.2500"]


def test_budgets_are_read_from_text():
    assert parse_budget(["macs=0.5", "params=.25"]) == Budget({"macs": 0.5, "params": 0.25})
    assert parse_budget(["macs=0.5..0.5"]) == Budget({"macs": 0.5})


def test_ranges_are_read_from_text_beside_a_budget_that_stays():
    found = parse_budget(["macs=0.3..0.8", "params=0.6"])
    assert isinstance(found, BudgetRange)
    assert found.tightest.shares == {"macs": 0.3, "params": 0.6}
    assert found.loosest.shares == {"macs": 0.8, "params": 0.6}


def test_draws_lie_on_a_grid_of_six_and_all_of_it_is_drawn():
    budgets, rng = parse_budget(["macs=0.3..0.8", "params=0.4..0.9"]), np.random.default_rng(0)
    drawn = {tuple(budgets.draw(rng).shares.values()) for _ in range(400)}
    assert drawn == {(round(0.3 + 0.1 * i, 6), round(0.4 + 0.1 * i, 6)) for i in range(6)}


@settings(max_examples=100)
@given(st.floats(0.001, 1.0), st.floats(0.001, 1.0), st.floats(0.0, 1.0))
def test_no_budget_of_a_range_lies_outside_it(one, other, position):
    low, high = sorted([one, other])
    budgets = BudgetRange(Budget({"macs": low}), Budget({"macs": high}))
    assert low <= budgets.budget_at(position).shares["macs"] <= high
    assert [budgets.budget_at(end).shares["macs"] for end in (0, 1)] == pytest.approx([low, high], abs=1e-6)


def test_the_ends_of_a_range_name_the_same_budgets():
    with pytest.raises(BudgetError, match="must name the same budgets, got macs and macs, params"):
        BudgetRange(Budget({"macs": 0.3}), Budget({"macs": 0.5, "params": 0.5}))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["macs"], "expected a budget such as macs=0.5 or macs=0.3..0.8, got 'macs'"),
        (["0.5"], "or macs=0.3..0.8, got '0.5'"),
        (["macs=half"], "got 'macs=half'"),
        (["macs=..0.3"], r"got 'macs=\.\.0\.3'"),
        (["macs=0.3.."], r"got 'macs=0\.3\.\.'"),
        (["macs=0.3...0.8"], r"got 'macs=0\.3\.\.\.0\.8'"),
        (["macs=0.3..0.5..0.8"], r"got 'macs=0\.3\.\.0\.5"),
        (["macs=0.8..0.3"], r"from the smaller share to the larger, got 0\.8\.\.0\.3"),
        (["macs=0.3..0.8", "params=0.9..0.4"], r"params: a range .* got 0\.9\.\.0\.4"),
        (["macs=0.3..0.8", "macs=0.5"], "macs is given twice"),
        (["macs=0.3..1.5"], r"must lie in \(0, 1\], got 1.5"),
        (["macs=0.3..nan"], "got nan"),
        (["macs=nan..0.8"], "got nan"),
        (["mac=0.5"], "no budget named 'mac'. Did you mean 'macs'?"),
        (["macs=0.5", "macs=0.6"], "macs is given twice"),
        (["macs=0"], r"macs: the share that may remain must lie in \(0, 1\], got 0.0"),
        (["macs=1.5"], r"must lie in \(0, 1\], got 1.5"),
        (["macs=nan"], "got nan"),
        (["macs=-0.5"], "got -0.5"),
        ([], "at least one"),
    ],
)
def test_a_malformed_budget_is_refused_in_one_line(texts, message):
    with pytest.raises(BudgetError, match=message) as caught:
        parse_budget(texts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["static_ratio", "runtime_ratio"])
@pytest.mark.parametrize("limit", [1.0, -0.1, math.nan])
def test_limits_must_be_shares_below_one(key, limit):
    with pytest.raises(BudgetError, match=rf"the limit: {key} must lie in \[0, 1\)"):
        Limits({key: limit})


def test_a_limit_of_no_technique_is_refused_with_the_nearest():
    with pytest.raises(BudgetError, match=r"no technique decides 'static'. Did you mean 'static_ratio'"):
        Limits({"static": 0.5})
