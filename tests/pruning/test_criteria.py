import copy

import pytest
import torch

from pruning.calibration import calibrate
from pruning.criteria import CRITERIA, per_unit, select
from pruning.graph import Member
from tests.pruning.oracles import assert_untouched, example, snapshot

NETWORKS = [
    "plain",
    "residual",
    "padded",
    "grouped",
    "transposed",
    "squeeze-excite",
    "conv1d",
    "mlp",
    "slices",
]


def shuffled(model, group, order):
    """A copy in which unit `u` of the group has the weights of unit `order[u]`."""
    model = copy.deepcopy(model)
    moves = [(member, True) for member in (*group.writers, *group.carriers)]
    moves += [(member, False) for member in group.readers]
    for member, written in moves:
        layer = model.get_submodule(member.owner)
        size = max(channel for unit in member.channels for channel in unit) + 1
        source = torch.arange(size)
        for unit, channels in enumerate(member.channels):
            source[list(channels)] = torch.tensor(member.channels[order[unit]])
        for tensor in [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]:
            if written and tensor.dim() and tensor.size(0) >= size:
                tensor.data[:size] = tensor.data[source]
            elif not written and tensor.dim() > 1 and tensor.size(1) >= size:
                tensor.data[:, :size] = tensor.data[:, source]
    return model


@pytest.mark.parametrize("name", list(CRITERIA))
class TestEveryCriterion:
    @pytest.mark.parametrize("network", NETWORKS)
    def test_gives_each_unit_a_finite_score(self, name, network):
        model, graph, images = example(network)
        before, calibration = snapshot(model), calibrate(model, graph, [images])
        for group in graph.prunable:
            scores = CRITERIA[name](model, group, calibration)
            assert scores.shape == (group.units,)
            assert scores.dtype == torch.float64
            assert scores.isfinite().all()
            assert not scores.requires_grad
            assert torch.equal(scores, CRITERIA[name](model, group, calibration))
        assert_untouched(model, before)

    @pytest.mark.parametrize(("network", "writer"), [("plain", "1.0"), ("residual", "a.0"), ("mlp", "0")])
    def test_follows_the_channels_when_they_are_shuffled(self, name, network, writer):
        model, graph, images = example(network)
        group = graph.group(writer)
        order = torch.randperm(group.units, generator=torch.Generator().manual_seed(0)).tolist()
        other = shuffled(model, group, order)
        torch.testing.assert_close(other(images), model(images))  # the same network, its channels renamed
        scores = CRITERIA[name](model, group, calibrate(model, graph, [images]))
        moved = CRITERIA[name](other, group, calibrate(other, graph, [images]))
        torch.testing.assert_close(moved, scores[order])
        assert scores.unique().numel() > 1


def filled(model, name, rows):
    layer = model.get_submodule(name)
    layer.weight.data.copy_(
        torch.tensor(rows).view(-1, *[1] * (layer.weight.dim() - 1)).expand_as(layer.weight)
    )


def test_l1_sums_the_magnitudes_of_all_writers():
    model, graph, _ = example("residual")
    model = copy.deepcopy(model)
    filled(model, "stem.0", [1.0, -2.0, 3.0, 0.0, 0.5, 0.0])  # 27 weights a row
    filled(model, "b.0", [0.0, 0.0, -1.0, 1.0, 0.0, 0.0])  # 72 weights a row
    scores = CRITERIA["l1"](model, graph.group("stem.0"), None)
    assert scores.tolist() == [27.0, 54.0, 81.0 + 72.0, 72.0, 13.5, 0.0]


def test_l1_sums_over_the_channels_of_a_unit():
    model, graph, _ = example("grouped")
    model = copy.deepcopy(model)
    filled(model, "grouped.0", [float(channel) for channel in range(8)])  # 3 x 9 weights a row
    scores = CRITERIA["l1"](model, graph.group("grouped.0"), None)
    assert scores.tolist() == [27.0 * (0 + 2 + 4 + 6), 27.0 * (1 + 3 + 5 + 7)]


def test_l1_reads_transposed_weights_the_right_way_round():
    model, graph, _ = example("transposed")
    model = copy.deepcopy(model)
    weight = model.grouped.weight  # [6, 4 / 2, 3, 3]: outputs 0 and 1 belong to inputs 0 to 2
    with torch.no_grad():
        weight.zero_()
        weight[0, 1, 0, 0] = -5.0  # output 1
        weight[5, 0, 0, 0] = 7.0  # output 2
    assert CRITERIA["l1"](model, graph.group("grouped"), None).tolist() == [7.0, 5.0]


def test_per_unit_sums_over_positions():
    member = Member("x", ((0, 3), (1, 2)))
    assert per_unit(member, torch.tensor([1.0, 2.0, 4.0, 8.0])).tolist() == [9.0, 6.0]


def test_the_highest_scores_survive_in_order():
    assert select(torch.tensor([0.1, 3.0, 0.2, 2.0]), 2).tolist() == [1, 3]


def test_of_equal_scores_the_lower_numbers_survive():
    assert select(torch.ones(50), 3).tolist() == [0, 1, 2]
    assert select(torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0]), 3).tolist() == [0, 1, 3]
