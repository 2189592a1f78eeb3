import math
import re
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunegym.envs.budget import Budget, BudgetRange, Limits, parse_budget
from prunegym.envs.budget_projection import BudgetProjection, kept_counts, rounded_up, smallest_shares
from prunegym.pruning.cost import CostModel, Widths
from prunegym.pruning.errors import BudgetError, ImpossibleBudgetError
from prunegym.pruning.graph import find_groups
from prunegym.pruning.networks.registry import resolve_network
from prunegym.pruning.plan import kept_units
from tests.pruning.oracles import example

NETWORKS = ("projected", "plain", "concat", "flatten", "grouped", "bias-free")
MEASURES = {"macs": CostModel.macs, "params": CostModel.params}
unit_shares = st.floats(0.0, 1.0)


@cache
def cost_of(name):
    model, graph, _ = example(name)
    return CostModel(graph, model, shifts_bias=True), graph


@cache
def digits_cost():
    """Of a network whose groups are wide enough for a ratio to mean something."""
    network = resolve_network("digits_resnet")
    model = network.build().eval()
    graph = find_groups(model, network.input_shape)
    return CostModel(graph, model), graph


def play(projection, wishes):
    """Decide every group; wishes: (static or None for the even ratio, runtime) per group."""
    kept, executed = [], []
    for step, (static, runtime) in enumerate(wishes):
        before = np.array(kept, dtype=np.int64), np.array(executed, dtype=np.int64)
        even = projection.even_ratio(step, *before)
        here = projection.project(
            step,
            *before,
            static=even if static is None else static,
            runtime=runtime,
        )
        kept.append(here[0])
        executed.append(here[1])
    return Widths(np.array(kept), np.array(executed))


def budgets_within_reach(cost, shares, round_to=1):
    smallest = smallest_shares(cost, Limits(), round_to=round_to)
    return {name: smallest[name] + share * (1 - smallest[name]) for name, share in shares.items()}


def is_over(cost, budget, kept, executed):
    widths = Widths(np.array(kept), np.array(executed))
    return any(
        price(cost, widths) > math.floor(budget[name] * price(cost, cost.dense) + 1e-6)
        for name, price in MEASURES.items()
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
    cost, graph = cost_of(network)
    names = draw(st.sets(st.sampled_from(["macs", "params"]), min_size=1))
    round_to = draw(st.sampled_from([1, 1, 2, 3]))
    budget = budgets_within_reach(cost, {name: draw(unit_shares) for name in sorted(names)}, round_to)
    static, runtime = st.floats(0.0, 0.9) | st.none(), st.floats(0.0, 0.5)
    wishes = [(draw(static), 0.0 if group.ungated else draw(runtime)) for group in graph.prunable]
    return Episode(network, budget, round_to, wishes)


@settings(max_examples=200)
@given(episodes())
def test_a_finished_plan_is_never_above_a_budget_and_uses_the_binding_one_up(episode):
    cost, graph = cost_of(episode.network)
    projection = BudgetProjection(cost, Budget(episode.budget), Limits(), round_to=episode.round_to)
    widths = play(projection, episode.wishes)
    kept, executed = widths.kept.tolist(), widths.executed.tolist()
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
@given(st.sampled_from(NETWORKS), st.floats(0.0, 0.999), st.sampled_from(["macs", "params"]))
def test_the_even_ratio_is_the_smallest_that_meets_the_budget(network, share, measure):
    cost, graph = cost_of(network)
    budget = budgets_within_reach(cost, {measure: share})
    ratio = BudgetProjection(cost, Budget(budget), Limits()).even_ratio(0, np.array([]), np.array([]))

    def over_at(even):
        counts = [kept_units(group.units, even) for group in graph.prunable]
        return is_over(cost, budget, counts, counts)

    assert not over_at(ratio)
    assert ratio == 0.0 or over_at(ratio - 1e-8)


@given(
    st.lists(st.tuples(st.integers(1, 2048), st.floats(0.0, 0.999)), min_size=1), st.sampled_from([1, 2, 8])
)
def test_counts_of_all_groups_are_those_of_each(groups, round_to):
    units, ratios = np.array([one[0] for one in groups]), np.array([one[1] for one in groups])
    each = [kept_units(count, ratio, round_to=round_to) for count, ratio in groups]
    assert kept_counts(units, ratios, round_to).tolist() == each


@settings(max_examples=50)
@given(unit_shares)
def test_even_wishes_make_the_uniform_plan(share):
    cost, graph = digits_cost()
    projection = BudgetProjection(cost, Budget(budgets_within_reach(cost, {"macs": share})), Limits())
    ratio = projection.even_ratio(0, np.array([]), np.array([]))
    widths = play(projection, [(None, 0.0)] * len(graph.prunable))
    assert (widths.executed == widths.kept).all()
    # the later groups make up for what rounding the earlier ones to whole units left over
    np.testing.assert_allclose(widths.kept / projection.units, 1 - ratio, atol=0.1)


def test_a_budget_of_everything_leaves_the_network_whole():
    cost, graph = cost_of("projected")
    projection = BudgetProjection(cost, Budget({"macs": 1.0, "params": 1.0}), Limits())
    widths = play(projection, [(0.9, 0.0)] * len(graph.prunable))
    assert (widths.executed == cost.dense.kept).all()


def test_of_two_budgets_the_tighter_one_sets_the_even_ratio_and_both_hold():
    cost, _ = cost_of("projected")
    none = np.array([])

    def ratio(**shares):
        return BudgetProjection(cost, Budget(shares), Limits()).even_ratio(0, none, none)

    assert ratio(macs=0.3, params=0.9) == ratio(macs=0.3) > ratio(macs=0.9, params=0.9)
    assert ratio(macs=0.9, params=0.3) == ratio(params=0.3) > ratio(macs=0.9)


def test_units_are_kept_in_multiples_where_asked():
    cost, graph = digits_cost()
    projection = BudgetProjection(cost, Budget({"macs": 0.6}), Limits(), round_to=8)
    kept = play(projection, [(0.35, 0.0)] * len(graph.prunable)).kept
    assert (kept % 8 == 0).all()
    assert kept[0] == 8  # of 16, asked for 10.4


@pytest.mark.parametrize("round_to", [1, 2])
@pytest.mark.parametrize("measure", ["macs", "params"])
@pytest.mark.parametrize("network", NETWORKS)
def test_an_impossible_budget_names_the_smallest_share_which_is_reachable(network, measure, round_to):
    cost, _ = cost_of(network)
    with pytest.raises(ImpossibleBudgetError, match=f"{measure}=0.0001 cannot be reached") as caught:
        BudgetProjection(cost, Budget({measure: 0.0001}), Limits(), round_to=round_to)
    assert "\n" not in str(caught.value)
    named = float(re.search(r"smallest is ([\d.]+)", str(caught.value))[1])
    projection = BudgetProjection(cost, Budget({measure: named}), Limits(), round_to=round_to)
    assert projection.even_ratio(0, np.array([]), np.array([])) <= 0.9
    with pytest.raises(ImpossibleBudgetError):
        BudgetProjection(cost, Budget({measure: named - 0.0002}), Limits(), round_to=round_to)


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


@pytest.mark.parametrize("limits", [(1.0, 0.5), (0.9, 1.0), (-0.1, 0.5), (math.nan, 0.5)])
def test_limits_must_be_shares_below_one(limits):
    with pytest.raises(BudgetError, match=r"must lie in \[0, 1\)"):
        Limits(*limits)
