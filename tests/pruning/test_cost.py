import copy
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prunegym.pruning.calibration.statistics import calibrate, real_images
from prunegym.pruning.compensation import COMPENSATIONS, PlannedCut
from prunegym.pruning.cost import count_params
from prunegym.pruning.errors import BudgetError
from prunegym.pruning.graph import find_groups
from prunegym.pruning.latency.timing import measure_latency, time_once
from prunegym.pruning.surgery.cutting import axis_cuts, cut
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.oracles import affordable, counted_macs, counted_params, example, random_kept
from tests.pruning.plans import cost_of, levels_of


def widths_of(graph, kept, executed=None):
    """The widths of an explicit choice of units."""
    counts = np.array([len(kept[group.name]) for group in graph.prunable], dtype=np.int64)
    return levels_of(counts, executed)


@pytest.mark.conformance
@pytest.mark.parametrize("name", list(EXAMPLES))
class TestEveryExample:
    def test_costs_when_dense_what_is_counted(self, name):
        model, graph, images = example(name)
        cost = cost_of(model, graph)
        assert cost.price("macs", cost.dense) == graph.macs == counted_macs(model, images[0])
        assert cost.price("params", cost.dense) == counted_params(model) == count_params(model)

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_costs_when_cut_what_is_counted(self, name, seed):
        model, graph, images = example(name)
        kept = random_kept(graph, seed)
        cost, widths, small = cost_of(model, graph), widths_of(graph, kept), cut(model, graph, kept)
        assert cost.price("macs", widths) == counted_macs(small, images[0])
        assert cost.price("params", widths) == counted_params(small)

    @pytest.mark.parametrize("compensation", list(COMPENSATIONS))
    def test_counts_the_biases_that_compensation_adds(self, name, compensation):
        model, graph, images = example(name)
        method, kept = COMPENSATIONS[compensation], random_kept(graph)
        changed = copy.deepcopy(model)
        cuts, calibration = axis_cuts(model, graph, kept), calibrate(graph, real_images(model, [images]))
        with affordable(name, compensation):
            method.apply_(changed, PlannedCut(model, graph, kept, cuts, calibration))
        small, widths = cut(changed, graph, kept), widths_of(graph, kept)
        cost = cost_of(model, graph, compensation=compensation)
        assert cost.price("params", widths) == counted_params(small)

    def test_executes_what_a_network_cut_to_the_executed_units_would_run(self, name):
        model, graph, images = example(name)
        kept = random_kept(graph, seed=5)
        executed = [
            len(kept[group.name]) if group.ungated else max(1, len(kept[group.name]) - 2)
            for group in graph.prunable
        ]
        runs = {
            group.name: kept[group.name][:count]
            for group, count in zip(graph.prunable, executed, strict=True)
        }
        small = cut(model, graph, kept)
        gates = [
            (small.get_submodule(group.layers[0]), len(kept[group.name]))
            for group, count in zip(graph.prunable, executed, strict=True)
            if count < len(kept[group.name])
        ]
        inputs = [getattr(writer, "in_channels", getattr(writer, "in_features", 0)) for writer, _ in gates]
        gate_macs = sum(cin * units for cin, (_, units) in zip(inputs, gates, strict=True))
        cost, widths = cost_of(model, graph), widths_of(graph, kept, executed)
        assert cost.price("macs", widths) == counted_macs(cut(model, graph, runs), images[0]) + gate_macs
        biases = sum(units for _, units in gates)
        fills = sum(
            len(reader.channels[unit])
            for group, count in zip(graph.prunable, executed, strict=True)
            for unit in kept[group.name].tolist()
            for reader in (group.readers if count < len(kept[group.name]) else ())
        )
        assert cost.price("params", widths) == counted_params(small) + gate_macs + biases + fills


@pytest.mark.conformance
@pytest.mark.parametrize(
    "name", [name for name in EXAMPLES if name != "attention"]
)  # it multiplies activations
def test_multiply_adds_agree_with_pytorchs_own_counter(name):
    model, graph, images = example(name)
    with FlopCounterMode(display=False) as counter:
        model(images[:1])
    assert graph.macs == counter.get_total_flops() // 2


def test_a_plain_network_by_hand():
    model, graph, _ = example("plain")
    cost = cost_of(model, graph)
    # 3x3, 3 -> 6 on 6x6; 3x3, 6 -> 8 with stride 2 on 3x3; linear 8 -> 5
    assert cost.price("macs", cost.dense) == 9 * 3 * 6 * 36 + 9 * 6 * 8 * 9 + 8 * 5
    assert cost.price("params", cost.dense) == 9 * 3 * 6 + 2 * 6 + 9 * 6 * 8 + 2 * 8 + 8 * 5 + 5
    levels, gate = levels_of([4, 8], [2, 8]), 3 * 4
    macs = 9 * 3 * 2 * 36 + 9 * 2 * 8 * 9 + 8 * 5 + gate
    params = 9 * 3 * 4 + 2 * 4 + 9 * 4 * 8 + 2 * 8 + 8 * 5 + 5
    params += gate + 4 + 4  # a bias and a fill for each unit
    assert cost.price("macs", levels) == macs
    assert cost.price("params", levels) == params
    assert cost.price("bops", levels) == 32 * 32 * macs
    # two BatchNorms, of 4 and 8 channels, hold a mean, a variance, and a counter of 8 bytes
    assert cost.price("bytes", levels) == 4 * params + 4 * 2 * (4 + 8) + 2 * 8


def test_what_vanishes_with_each_group_of_a_plain_network_by_hand():
    model, graph, _ = example("plain")
    first, second, last = 9 * 3 * 6 * 36, 9 * 6 * 8 * 9, 8 * 5
    whole = first + second + last
    expected = [(first + second) / whole, (second + last) / whole]
    assert cost_of(model, graph).vanishing_shares("macs").tolist() == pytest.approx(expected)


def test_in_double_precision_every_tensor_but_the_counters_takes_twice_the_bytes():
    model, graph, _ = example("plain")
    single, double = cost_of(model, graph), cost_of(copy.deepcopy(model).double(), graph)
    levels, counters = levels_of([4, 8], [2, 8]), 2 * 8  # those of BatchNorm are of 8 bytes in both
    assert double.price("bytes", levels) == 2 * (single.price("bytes", levels) - counters) + counters


def test_what_gates_have_a_part_in_by_hand():
    model, graph, _ = example("plain")
    prices = cost_of(model, graph).input_prices(levels_of([4, 8], [2, 8]))
    assert prices.fixed == 8 * 5 + 3 * 4  # the linear layer, and the gate
    assert [prices.gated(np.array([runs])) for runs in (1, 4)] == [
        9 * 3 * runs * 36 + 9 * runs * 8 * 9 for runs in (1, 4)
    ]


@pytest.mark.conformance
@pytest.mark.parametrize("name", list(EXAMPLES))
def test_what_gates_have_a_part_in_and_the_rest_are_everything(name):
    model, graph, _ = example(name)
    cost, rng = cost_of(model, graph), np.random.default_rng(4)
    kept = np.array([int(rng.integers(1, group.units + 1)) for group in graph.prunable])
    free = np.array([group.ungated is None for group in graph.prunable], dtype=bool)
    executed = np.where(free, rng.integers(1, kept + 1), kept)
    levels, gated = levels_of(kept, executed), executed < kept
    prices = cost.input_prices(levels)
    assert prices.dense == graph.macs
    assert prices.fixed + prices.gated(executed[gated]) == pytest.approx(cost.price("macs", levels))
    assert (prices.gated.slopes != 0).any(axis=(0, 2)).all()
    assert cost.input_prices(levels_of(kept)).fixed == cost.price("macs", levels_of(kept))


def test_latency_has_no_price_without_a_table():
    model, graph, _ = example("plain")
    cost = cost_of(model, graph)
    assert cost.prices == ("macs", "params", "bytes", "bops")
    with pytest.raises(BudgetError, match=r"latency has no price: measure .* with `prunegym latency`"):
        cost.price("latency", cost.dense)
    priced = cost_of(model, graph, latency=lambda kept, present: int(1000 * kept.sum()))
    assert priced.price("latency", levels_of([4, 8], [2, 8])) == 12_000
    assert priced.shares(levels_of([4, 8]))["latency"] == 12 / 14


def test_latency_is_measured_for_each_network_by_name():
    found = measure_latency({"a": example("mlp")[0], "b": torch.nn.Identity()}, torch.randn(1, 7), rounds=1)
    assert set(found) == {"a", "b"}
    assert 0 < found["b"] < found["a"] < 100


def test_a_convolution_that_is_no_layer_still_counts():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 6, 3, padding=1)
            self.kernel = nn.Parameter(torch.randn(5, 6, 3, 3))

        def forward(self, x):
            return nn.functional.conv2d(self.first(x), self.kernel).mean((2, 3))

    # 3x3 kernels: 3 -> 6 channels on 8x8 positions, 6 -> 5 channels on 6x6
    assert find_groups(Functional(), (3, 8, 8)).macs == 9 * 3 * 6 * 64 + 9 * 6 * 5 * 36


def test_on_one_thread_the_time_of_other_work_does_not_count():
    class Waits(nn.Module):
        def forward(self, x):
            time.sleep(0.005)  # as while another process has the processor
            return x

    assert time_once(Waits(), torch.zeros(1), seconds=0.0005) < 2.5
