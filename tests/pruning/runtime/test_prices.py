import json

import numpy as np
import pytest

from prunegym.pruning.runtime.prices import InputPrices
from tests.pruning.oracles import example
from tests.pruning.plans import cost_of, levels_of
from tests.pruning.runtime.test_gates import GATED


def random_levels(graph, rng):
    """Levels by which every group that takes a gate and has two units left is gated."""
    kept = np.array([int(rng.integers(min(2, group.units), group.units + 1)) for group in graph.prunable])
    gated = np.array([group.ungated is None for group in graph.prunable]) & (kept > 1)
    return levels_of(kept, np.where(gated, kept - 1, kept)), gated


@pytest.mark.conformance
@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("seed", range(3))
def test_an_input_costs_what_the_cost_model_says_of_its_counts(name, seed):
    model, graph, _ = example(name)
    cost, rng = cost_of(model, graph), np.random.default_rng(seed)
    levels, gated = random_levels(graph, rng)
    prices = cost.input_prices(levels)
    rows = [rng.integers(1, levels["channels"][gated]) for _ in range(6)]
    expected = []
    for row in rows:
        executed = levels["channels"].copy()
        executed[gated] = row
        expected.append(cost.price("macs", levels_of(levels["channels"], executed)))
    assert prices.macs(np.array(rows)) == pytest.approx(expected, abs=1e-6)
    assert prices.dense == cost.price("macs", cost.dense)


def plain_prices():
    """Of a plan that keeps (4, 8) units and gates both groups."""
    model, graph, _ = example("plain")
    return cost_of(model, graph).input_prices(levels_of(np.array([4, 8]), np.array([2, 5])))


def test_a_plain_network_by_hand():
    prices = plain_prices()
    gates = 3 * 4 + 4 * 8
    assert prices.fixed == gates
    # 3x3, 3 -> 6 on 6x6; 3x3, 6 -> 8 with stride 2 on 3x3; linear 8 -> 5
    assert prices.dense == 9 * 3 * 6 * 36 + 9 * 6 * 8 * 9 + 8 * 5

    def by_hand(a, b):
        return 9 * 3 * a * 36 + 9 * a * b * 9 + b * 5 + gates

    rows = [(2, 5), (4, 8), (1, 1), (4, 1)]  # all units run as well: the gates are there all the same
    assert prices.macs(np.array(rows)).tolist() == [by_hand(*row) for row in rows]


def test_a_gates_share_is_what_its_group_could_save_by_hand():
    first, second = 9 * 3 * 4 * 36 + 9 * 4 * 8 * 9, 9 * 4 * 8 * 9 + 8 * 5
    found = plain_prices().gate_shares(np.array([4, 8]))
    assert found.tolist() == pytest.approx([first / (first + second), second / (first + second)])


@pytest.mark.conformance
@pytest.mark.parametrize("name", GATED)
def test_shares_of_all_gates_add_up(name):
    model, graph, _ = example(name)
    levels, gated = random_levels(graph, np.random.default_rng(0))
    shares = cost_of(model, graph).input_prices(levels).gate_shares(levels["channels"][gated])
    assert shares.shape == (gated.sum(),)
    assert (shares > 0).all()
    assert shares.sum() == pytest.approx(1)


@pytest.mark.conformance
@pytest.mark.parametrize("name", GATED)
def test_to_json_and_back_is_equal(name):
    model, graph, _ = example(name)
    rng = np.random.default_rng(1)
    levels, gated = random_levels(graph, rng)
    prices = cost_of(model, graph).input_prices(levels)
    data = json.loads(json.dumps(prices.to_dict()))
    again = InputPrices.from_dict(data)
    rows = rng.integers(1, levels["channels"][gated] + 1, (5, gated.sum()))
    assert again.macs(rows).tolist() == prices.macs(rows).tolist()
    assert (again.dense, again.fixed) == (prices.dense, prices.fixed)
    assert again.to_dict() == data
