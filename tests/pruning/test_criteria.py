import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunegym.pruning.calibration.moments import FullCovariance, Moments, SampledCovariance
from prunegym.pruning.calibration.statistics import calibrate, real_images
from prunegym.pruning.criteria import CRITERIA, per_unit, select
from prunegym.pruning.graph import Member, find_groups
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.oracles import assert_untouched, example, snapshot


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
    @pytest.mark.conformance
    @pytest.mark.parametrize("network", list(EXAMPLES))
    def test_gives_each_unit_a_finite_score(self, name, network):
        model, graph, images = example(network)
        before, calibration = snapshot(model), calibrate(graph, real_images(model, [images]))
        for group in graph.prunable:
            scores = CRITERIA[name](model, group, calibration)
            assert scores.shape == (group.units,)
            assert scores.dtype == torch.float64
            assert scores.isfinite().all()
            assert not scores.requires_grad
            assert torch.equal(scores, CRITERIA[name](model, group, calibration))
        assert_untouched(model, before)

    @pytest.mark.parametrize(
        ("network", "writer"),
        [("plain", "1.0"), ("residual", "a.0"), ("residual", "stem.0"), ("mlp", "0"), ("concat", "a.0")],
    )
    def test_follows_the_channels_when_they_are_shuffled(self, name, network, writer):
        model, graph, images = example(network)
        group = graph.group(writer)
        order = torch.randperm(group.units, generator=torch.Generator().manual_seed(0)).tolist()
        other = shuffled(model, group, order)
        torch.testing.assert_close(other(images), model(images))  # the same network, its channels renamed
        scores = CRITERIA[name](model, group, calibrate(graph, real_images(model, [images])))
        moved = CRITERIA[name](other, group, calibrate(graph, real_images(other, [images])))
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


def test_the_geometric_median_sums_distances_by_hand():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    model[0].weight.data = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
    group = find_groups(model, (2,)).group("0")
    assert CRITERIA["geometric-median"](model, group, None).tolist() == [15.0, 10.0, 15.0]


def test_the_geometric_median_sees_the_weights_of_all_writers_as_one_point():
    model, graph, _ = example("residual")
    model = copy.deepcopy(model)
    filled(model, "stem.0", [1.0, 0.0, 0.0, 0.0, 0.0, 0.0])  # 27 weights a row
    filled(model, "b.0", [1.0, 0.0, 0.0, 0.0, 0.0, 0.0])  # 72 weights a row
    scores = CRITERIA["geometric-median"](model, graph.group("stem.0"), None)
    assert scores.tolist() == pytest.approx([5 * 99**0.5] + [99**0.5] * 5)


def test_the_geometric_median_sees_the_channels_of_a_unit_as_one_point():
    model, graph, _ = example("grouped")
    model = copy.deepcopy(model)
    filled(model, "grouped.0", [0.0, 1.0, 0.0, 2.0, 0.0, 3.0, 0.0, 4.0])  # 3 x 9 weights a row
    scores = CRITERIA["geometric-median"](model, graph.group("grouped.0"), None)
    assert scores.tolist() == pytest.approx([(27 * (1 + 4 + 9 + 16)) ** 0.5] * 2)


def test_the_batch_norm_scale_is_summed_in_magnitude_over_all_batch_norms_of_a_group():
    model, graph, _ = example("residual")
    model = copy.deepcopy(model)
    model.stem[1].weight.data = torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0, 0.0])
    model.b[1].weight.data = torch.tensor([0.0, 1.0, -1.0, 0.5, -3.0, 0.25])
    scores = CRITERIA["batch-norm-scale"](model, graph.group("stem.0"), None)
    assert scores.tolist() == [1.0, 3.0, 1.0, 1.0, 6.0, 0.25]


def test_the_batch_norm_scale_finds_its_channels_behind_a_concatenation():
    model, graph, _ = example("concat")
    model = copy.deepcopy(model)
    model.b[1].weight.data = torch.arange(7.0)
    model.norm.weight.data = 10 * torch.arange(12.0)  # 5 channels of a, then 7 of b
    scores = CRITERIA["batch-norm-scale"](model, graph.group("b.0"), None)
    assert scores.tolist() == [50.0, 61.0, 72.0, 83.0, 94.0, 105.0, 116.0]


def test_the_batch_norm_scale_leaves_out_what_else_carries_a_value_per_channel():
    model, graph, _ = example("conv1d")  # with a PReLU of one slope per channel
    scores = CRITERIA["batch-norm-scale"](model, graph.group("a"), None)
    assert scores.tolist() == model.norm.weight.abs().tolist()


def test_without_a_learned_batch_norm_scale_the_weights_decide():
    mlp, graph, _ = example("mlp")
    fixed = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Conv2d(4, 2, 1))
    for model, group in ((mlp, graph.group("0")), (fixed, find_groups(fixed, (3, 5, 5)).group("0"))):
        assert torch.equal(
            CRITERIA["batch-norm-scale"](model, group, None), CRITERIA["l1"](model, group, None)
        )


def readings(model, group, images):
    """For each reader and convolution group: its input [rows, dims], weight, and the unit of each input."""
    seen = {}
    handles = [
        model.get_submodule(reader.owner).register_forward_hook(
            lambda _, args, __, name=reader.owner: seen.update({name: args[0].detach()})
        )
        for reader in group.readers
    ]
    model(images)
    for handle in handles:
        handle.remove()
    for reader in group.readers:
        layer, x = model.get_submodule(reader.owner), seen[reader.owner]
        weight, groups = layer.weight.detach().double().flatten(1), getattr(layer, "groups", 1)
        kernel = 1 if isinstance(layer, nn.Linear) else layer.weight[0, 0].numel()
        if isinstance(layer, nn.Conv2d):
            x = F.unfold(x, layer.kernel_size, padding=layer.padding, stride=layer.stride)
            x = x.transpose(1, 2).flatten(0, 1)
        units = np.full(x.size(1), -1)
        for unit, channels in enumerate(reader.channels):
            for channel in channels:
                units[channel * kernel : (channel + 1) * kernel] = unit
        yield [
            (x_part.double().numpy(), weight_part.numpy(), units_part)
            for x_part, weight_part, units_part in zip(
                x.chunk(groups, dim=1), weight.chunk(groups), np.split(units, groups), strict=True
            )
        ]


def with_ridge(parts, ridge=1e-3):
    """Rows and targets whose plain least squares is the ridge regression of the reader's parts."""
    for x, weight, units in parts:
        x = (x - x.mean(0)) / len(x) ** 0.5
        rows = np.concatenate([x, (ridge * x.var(0).sum() * len(x) / x.shape[1]) ** 0.5 * np.eye(x.shape[1])])
        yield rows, rows @ weight.T, units


def lost_share(parts, standing):
    lost = total = 0.0
    for rows, targets, units in parts:
        stays = rows[:, np.isin(units, [-1, *standing])]
        lost += ((targets - stays @ np.linalg.lstsq(stays, targets)[0]) ** 2).sum()
        total += (targets**2).sum()
    return lost / total


@pytest.mark.parametrize(
    ("network", "writer"),
    [
        ("mlp", "0"),
        ("plain", "0.0"),
        ("residual", "stem.0"),
        ("grouped", "stem.0"),
        ("concat", "a.0"),
        ("concat", "b.0"),
        ("flatten", "conv.0"),
        ("padded", "conv1"),
        ("projected", "layer2.0.conv2"),
    ],
)
def test_elimination_is_the_greedy_search_that_refits_from_scratch(network, writer):
    model, images = EXAMPLES[network].model(), EXAMPLES[network].images(32)
    graph = find_groups(model, images.shape[1:])
    group = graph.group(writer)
    readers = [list(with_ridge(parts)) for parts in readings(model, group, images)]
    standing, gone = list(range(group.units)), []
    while standing:
        without = {unit: [other for other in standing if other != unit] for unit in standing}
        losses = {unit: sum(lost_share(parts, left) for parts in readers) for unit, left in without.items()}
        gone.append(min(standing, key=losses.__getitem__))
        standing.remove(gone[-1])
    scores = CRITERIA["elimination"](model, group, calibrate(graph, real_images(model, [images])))
    assert scores.argsort().tolist() == gone


def read_by(reader, covariance):
    """A network whose group `0` is read by `reader`, whose inputs have this covariance."""
    size = reader.weight.size(1)
    model = nn.Sequential(nn.Conv2d(1, size, 1), nn.ReLU(), reader)
    group = find_groups(model, (1, 5, 5)).group("0")
    moments = Moments(torch.zeros(1, reader.weight[0].numel(), dtype=torch.float64), (covariance,))
    return model, group, SimpleNamespace(moments={"2": moments})


def test_of_units_that_cost_the_same_the_highest_number_goes_first():
    reader = nn.Conv2d(5, 3, 1)
    nn.init.ones_(reader.weight)
    case = read_by(reader, FullCovariance(torch.eye(5, dtype=torch.float64)))
    assert CRITERIA["elimination"](*case).tolist() == [4.0, 3.0, 2.0, 1.0, 0.0]
    reader.weight.data[:, 0] = 0.5
    assert CRITERIA["elimination"](*case).tolist() == [0.0, 4.0, 3.0, 2.0, 1.0]


def test_near_copies_spare_each_other_whether_or_not_they_belong_to_the_group():
    covariance = torch.tensor([[1.0, 0.0, 0.99], [0.0, 0.5, 0.0], [0.99, 0.0, 1.0]], dtype=torch.float64)
    reader = nn.Conv2d(3, 4, 1)
    nn.init.ones_(reader.weight)
    model, group, calibration = read_by(reader, FullCovariance(covariance))
    assert CRITERIA["elimination"](model, group, calibration).tolist() == [2.0, 1.0, 0.0]
    first_two = [replace(member, channels=((0,), (1,))) for member in (*group.writers, *group.readers)]
    group = replace(group, units=2, writers=(first_two[0],), readers=(first_two[1],))
    assert CRITERIA["elimination"](model, group, calibration).tolist() == [0.0, 1.0]


def test_with_fewer_rows_than_inputs_a_unit_costs_the_variance_it_brings():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5, 24, generator=generator, dtype=torch.float64)
    reader = nn.Conv2d(6, 3, 2)
    with torch.no_grad():
        reader.weight.copy_(torch.randn(reader.weight.shape, generator=generator))
    by_unit = rows.numpy().reshape(5, 6, 4), reader.weight.detach().double().numpy().reshape(3, 6, 4)
    brought = (np.einsum("nub,oub->uno", *by_unit) ** 2).sum((1, 2))
    scores = CRITERIA["elimination"](*read_by(reader, SampledCovariance(rows)))
    assert scores.argsort().tolist() == brought.argsort().tolist()


def test_elimination_falls_back_on_the_weights_where_no_reader_counts():
    model, graph, images = example("transposed")
    calibration = calibrate(graph, real_images(model, [images]))
    group = next(group for group in graph.prunable if [r.owner for r in group.readers] == ["grouped"])
    dead = nn.Conv2d(5, 3, 1)
    nn.init.zeros_(dead.weight)
    silent = read_by(dead, FullCovariance(torch.eye(5, dtype=torch.float64)))
    for case in ((model, group, calibration), silent):
        assert torch.equal(CRITERIA["elimination"](*case), CRITERIA["l1"](*case))
