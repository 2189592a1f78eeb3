import copy
import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prunegym.pruning.calibration.statistics import calibrate, real_images
from prunegym.pruning.compensation import COMPENSATIONS, PlannedCut
from prunegym.pruning.cost import Bilinear, CostModel, Widths, count_params, plan_widths, widths_plan
from prunegym.pruning.errors import PlanError, UnknownNameError
from prunegym.pruning.graph import find_groups
from prunegym.pruning.latency.timing import measure_latency, time_once
from prunegym.pruning.plan import LayerDecision, PruningPlan
from prunegym.pruning.surgery.cutting import axis_cuts, cut
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.oracles import affordable, counted_macs, counted_params, example, random_kept


def widths_of(graph, kept, executed=None):
    """The widths of an explicit choice of units."""
    counts = np.array([len(kept[group.name]) for group in graph.prunable], dtype=np.int64)
    return Widths(counts, counts if executed is None else np.array(executed, dtype=np.int64))


@pytest.mark.conformance
@pytest.mark.parametrize("name", list(EXAMPLES))
class TestEveryExample:
    def test_costs_when_dense_what_is_counted(self, name):
        model, graph, images = example(name)
        cost = CostModel(graph, model)
        assert cost.macs(cost.dense) == graph.macs == counted_macs(model, images[0])
        assert cost.params(cost.dense) == counted_params(model) == count_params(model)

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_costs_when_cut_what_is_counted(self, name, seed):
        model, graph, images = example(name)
        kept = random_kept(graph, seed)
        cost, widths, small = CostModel(graph, model), widths_of(graph, kept), cut(model, graph, kept)
        assert cost.macs(widths) == counted_macs(small, images[0])
        assert cost.params(widths) == counted_params(small)

    @pytest.mark.parametrize("compensation", list(COMPENSATIONS))
    def test_counts_the_biases_that_compensation_adds(self, name, compensation):
        model, graph, images = example(name)
        method, kept = COMPENSATIONS[compensation], random_kept(graph)
        changed = copy.deepcopy(model)
        cuts, calibration = axis_cuts(model, graph, kept), calibrate(graph, real_images(model, [images]))
        with affordable(name, compensation):
            method.apply_(changed, PlannedCut(model, graph, kept, cuts, calibration))
        small, widths = cut(changed, graph, kept), widths_of(graph, kept)
        cost = CostModel(graph, model, shifts_bias=method.shifts_bias)
        assert cost.params(widths) == counted_params(small)

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
        cost, widths = CostModel(graph, model), widths_of(graph, kept, executed)
        assert cost.macs(widths) == counted_macs(cut(model, graph, runs), images[0]) + gate_macs
        biases = sum(units for _, units in gates)
        fills = sum(
            len(reader.channels[unit])
            for group, count in zip(graph.prunable, executed, strict=True)
            for unit in kept[group.name].tolist()
            for reader in (group.readers if count < len(kept[group.name]) else ())
        )
        assert cost.params(widths) == counted_params(small) + gate_macs + biases + fills


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
    cost = CostModel(graph, model)
    # 3x3, 3 -> 6 on 6x6; 3x3, 6 -> 8 with stride 2 on 3x3; linear 8 -> 5
    assert cost.macs(cost.dense) == 9 * 3 * 6 * 36 + 9 * 6 * 8 * 9 + 8 * 5
    assert cost.params(cost.dense) == 9 * 3 * 6 + 2 * 6 + 9 * 6 * 8 + 2 * 8 + 8 * 5 + 5
    kept, executed = np.array([4, 8]), np.array([2, 8])
    gate = 3 * 4
    assert cost.macs(Widths(kept, executed)) == 9 * 3 * 2 * 36 + 9 * 2 * 8 * 9 + 8 * 5 + gate
    assert cost.params(Widths(kept, executed)) == (
        9 * 3 * 4 + 2 * 4 + 9 * 4 * 8 + 2 * 8 + 8 * 5 + 5 + gate + 4 + 4  # a bias and a fill for each unit
    )


def test_what_gates_have_a_part_in_by_hand():
    model, graph, _ = example("plain")
    fixed, gated = CostModel(graph, model).gated_macs(Widths(np.array([4, 8]), np.array([2, 8])))
    assert fixed == 8 * 5 + 3 * 4  # the linear layer, and the gate
    assert [gated(np.array([runs])) for runs in (1, 4)] == [
        9 * 3 * runs * 36 + 9 * runs * 8 * 9 for runs in (1, 4)
    ]


@pytest.mark.conformance
@pytest.mark.parametrize("name", list(EXAMPLES))
def test_what_gates_have_a_part_in_and_the_rest_are_everything(name):
    model, graph, _ = example(name)
    cost, rng = CostModel(graph, model), np.random.default_rng(4)
    kept = np.array([int(rng.integers(1, group.units + 1)) for group in graph.prunable])
    free = np.array([group.ungated is None for group in graph.prunable], dtype=bool)
    executed = np.where(free, rng.integers(1, kept + 1), kept)
    widths, gated = Widths(kept, executed), executed < kept
    fixed, rest = cost.gated_macs(widths)
    assert fixed + rest(executed[gated]) == pytest.approx(cost.macs(widths))
    assert ((rest.in1 != 0) | (rest.out1 != 0)).any(axis=1).all()
    assert cost.gated_macs(Widths(kept, kept))[0] == cost.macs(Widths(kept, kept))


class TestBilinear:
    @pytest.fixture
    def table(self):
        """Five rows, three groups, whole numbers."""
        rng = np.random.default_rng(0)
        shapes = [(5,), (5,), (5, 3), (5,), (5, 3)]
        return Bilinear(*(rng.integers(0, 9, shape).astype(float) for shape in shapes))

    def by_hand(self, table, counts, rows=range(5)):
        total = 0.0
        for row in rows:
            ins = table.in0[row] + sum(a * n for a, n in zip(table.in1[row], counts, strict=True))
            outs = table.out0[row] + sum(a * n for a, n in zip(table.out1[row], counts, strict=True))
            total += table.coefficient[row] * ins * outs
        return total

    def test_the_sum_for_each_row_of_counts(self, table):
        counts = np.array([[1, 2, 3], [0, 0, 0], [7, 1, 4]])
        assert table.evaluate_rows(counts).tolist() == [self.by_hand(table, row) for row in counts]
        assert table(counts[2]) == self.by_hand(table, counts[2])

    def test_the_counts_of_some_groups_being_given(self, table):
        counts = np.array([3, 5, 2])
        some = table.restricted_to(np.array([True, False, True]), counts)
        for first, last in ((3, 2), (1, 1), (0, 9)):
            assert some(np.array([first, last])) == self.by_hand(table, [first, 5, last])

    def test_some_of_the_rows(self, table):
        which, counts = np.array([False, True, True, False, True]), np.array([4, 1, 2])
        assert table.rows(which)(counts) == self.by_hand(table, counts, rows=(1, 2, 4))


class TestPlanWidths:
    def test_are_of_all_units_then_of_the_survivors(self):
        _, graph, _ = example("plain")
        plan = PruningPlan({"0.0": LayerDecision(0.5, 0.4), "1.0": LayerDecision(0.0, 0.5)})
        widths = plan_widths(graph, plan)
        assert widths.kept.tolist() == [3, 8]
        assert widths.executed.tolist() == [2, 4]  # 3 * 0.6 = 1.8

    def test_are_rounded_to_a_multiple(self):
        _, graph, _ = example("plain")
        assert plan_widths(graph, PruningPlan({"1.0": LayerDecision(0.4)}), round_to=4).kept[1] == 4

    def test_refuse_a_group_that_is_not_there(self):
        with pytest.raises(UnknownNameError, match=r"no channel group named '1\.1'\. Did you mean '1\.0'\?"):
            plan_widths(example("plain")[1], PruningPlan({"1.1": LayerDecision(0.5)}))

    def test_refuse_a_frozen_group_with_the_reason(self):
        _, graph, _ = example("softmax")
        with pytest.raises(PlanError, match=r"group 'conv\.0' is frozen \(operator mixes channels\)"):
            plan_widths(graph, PruningPlan({"conv.0": LayerDecision(0.5)}))
        plan_widths(graph, PruningPlan({"conv.0": LayerDecision(0.0)}))

    def test_refuse_a_gate_where_none_can_be(self):
        _, graph, _ = example("residual")
        with pytest.raises(PlanError, match=r"'stem\.0' takes no runtime gate \(several layers write"):
            plan_widths(graph, PruningPlan({"stem.0": LayerDecision(0.5, 0.1)}))
        plan_widths(graph, PruningPlan({"stem.0": LayerDecision(0.5, 0.0)}))


@pytest.mark.parametrize("name", ["plain", "residual", "concat", "grouped", "padded"])
@pytest.mark.parametrize("seed", range(5))
def test_the_plan_of_unit_counts_comes_to_the_same_counts(name, seed):
    _, graph, _ = example(name)
    rng = np.random.default_rng(seed)
    kept = [int(rng.integers(1, group.units + 1)) for group in graph.prunable]
    executed = [
        count if group.ungated else int(rng.integers(1, count + 1))
        for group, count in zip(graph.prunable, kept, strict=True)
    ]
    plan = widths_plan(graph, Widths(np.array(kept), np.array(executed)))
    assert list(plan.decisions) == [group.name for group in graph.prunable]
    assert json.loads(json.dumps(plan.to_dict())) == plan.to_dict()
    found = plan_widths(graph, plan)
    assert (found.kept.tolist(), found.executed.tolist()) == (kept, executed)


def test_a_network_without_prunable_groups_still_has_a_price():
    model, graph, _ = example("mlp")
    graph = replace(graph, groups=tuple(replace(group, frozen="all") for group in graph.groups))
    cost = CostModel(graph, model)
    assert cost.macs(cost.dense) == 7 * 9 + 9 * 4


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
