import copy
import itertools
import math

import pytest
import torch
from torch import nn

from prunegym.pruning.compensation.folding import k_means, unit_features, variance_gains
from prunegym.pruning.graph import find_groups
from tests.pruning.compensation.related_units import (
    compensated,
    cut_output,
    equal_columns_,
    related,
    without,
)
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.oracles import example

DOUBLE = torch.float64


@pytest.mark.conformance
@pytest.mark.parametrize("name", list(EXAMPLES))
def test_a_copied_unit_is_folded_without_loss(name):
    for group in example(name)[1].prunable:
        if group.units < 3:
            continue
        model, graph, images = related(name, group, unit=1, source=group.units - 1)
        equal_columns_(model, group, 1, group.units - 1)
        expected = model(images).detach()
        found = cut_output(
            model, graph, images, without(group, 0), "folding"
        )  # the copies may stay; others move
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class Pairs(nn.Sequential):
    """Units 0 and 2 are close to each other, and so are 1 and 3."""

    def __init__(self):
        super().__init__(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4, eps=0.0), nn.ReLU(), nn.Conv2d(4, 1, 1))
        with torch.no_grad():
            self[0].weight[:, :, 0, 0] = torch.tensor([[8.0, 6.0], [0.0, -9.0], [8.0, 0.0], [0.0, -9.0]])
            self[0].bias.copy_(torch.tensor([1.0, 2.0, 2.0, 6.0]))
            self[1].weight.copy_(torch.tensor([1.0, 2.0, 1.2, 2.2]))
            self[1].bias.copy_(torch.tensor([0.0, 1.0, 0.2, 1.2]))
            self[1].running_mean.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
            self[1].running_var.copy_(torch.tensor([1.0, 4.0, 2.0, 4.0]))
            self[3].weight[0, :, 0, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
        self.eval()


def test_clusters_become_means_of_what_writes_them_and_sums_of_what_reads_them():
    net = nn.Sequential(Pairs(), nn.Flatten(), nn.Linear(9, 2)).eval()
    graph = find_groups(net, (2, 3, 3))
    folded = compensated(net, graph, torch.randn(2, 2, 3, 3), {"0.0": torch.tensor([1, 2])}, "folding")[0]
    order = [1, 2] if folded[0].weight[1].sum() > 0 else [2, 1]  # which slot holds units 0 and 2
    torch.testing.assert_close(folded[0].weight[order, :, 0, 0], torch.tensor([[8.0, 3.0], [0.0, -9.0]]))
    torch.testing.assert_close(folded[0].bias[order], torch.tensor([1.5, 4.0]))
    torch.testing.assert_close(folded[1].bias[order], torch.tensor([0.1, 1.1]))
    torch.testing.assert_close(folded[1].running_mean[order], torch.tensor([0.2, 0.3]))
    torch.testing.assert_close(folded[1].running_var[order], torch.tensor([1.5, 4.0]))
    torch.testing.assert_close(folded[3].weight[0, order, 0, 0], torch.tensor([4.0, 6.0]))
    # the cosine of (8, 6) and (8, 0) is 0.8: 2 / sqrt(2 + 2 * 0.8); that of equal rows is 1
    gain = 2 / math.sqrt(2 + 2 * 0.8)
    torch.testing.assert_close(folded[1].weight[order], torch.tensor([1.1 * gain, 2.1]))


def test_units_are_clustered_by_their_normalised_rows_their_factor_and_their_columns():
    net = nn.Sequential(Pairs(), nn.Flatten(), nn.Linear(9, 2)).eval()
    graph = find_groups(net, (2, 3, 3))
    found = unit_features(net, graph, graph.group("0.0"))
    root = 2**0.5
    expected = [[8, 6, 1, 1], [0, -4.5, 2, 2], [8 / root, 0, 1.2, 3], [0, -4.5, 2.2, 4]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=DOUBLE), atol=1e-6, rtol=1e-6)


def test_a_residual_stream_is_clustered_by_all_that_writes_and_reads_it():
    model, graph, _ = example("residual")
    stream = graph.group("stem.0")
    found = unit_features(model, graph, stream)
    assert found.shape == (6, 3 * 9 + 1 + 8 * 9 + 1 + 8 * 9 + 5)
    assert found[:, 27].tolist() == model.stem[1].weight.double().tolist()


@pytest.mark.parametrize(
    ("rows", "gain"),
    [
        ([[3.0, 0.0], [1.0, 3**0.5]], 2 / math.sqrt(2 + 2 * 0.5)),
        ([[3.0, 0.0], [0.0, 5.0]], 2**0.5),
        ([[3.0, 0.0], [-1.0, 0.0]], 2**0.5),  # no more than that of orthogonal ones
        ([[3.0, 0.0], [0.5, 0.0]], 1.0),
    ],
)
def test_the_gain_is_what_averaging_took_from_the_standard_deviation(rows, gain):
    rows = torch.tensor([*rows, [1.0, 1.0]], dtype=DOUBLE)[:, None]
    members = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=DOUBLE)
    expected = torch.tensor([[gain], [1.0]], dtype=DOUBLE)
    torch.testing.assert_close(variance_gains(rows, members), expected)


def inertia(points, labels):
    clusters = [points[[n for n, one in enumerate(labels) if one == label]] for label in set(labels)]
    return sum(float((cluster - cluster.mean(0)).square().sum()) for cluster in clusters)


class TestKMeans:
    @pytest.mark.parametrize("dimensions", [2, 30])
    @pytest.mark.parametrize("seed", range(3))
    def test_finds_the_best_of_all_clusterings(self, dimensions, seed):
        generator = torch.Generator().manual_seed(seed)
        plane = torch.randn(2, dimensions, dtype=DOUBLE, generator=generator)
        points = torch.randn(7, 2, dtype=DOUBLE, generator=generator) @ plane
        best = min(
            inertia(points, labels)
            for labels in itertools.product(range(3), repeat=7)
            if len(set(labels)) == 3
        )
        assert inertia(points, k_means(points, 3).tolist()) == pytest.approx(best)

    @pytest.mark.parametrize("count", [1, 3, 6])
    def test_leaves_no_cluster_empty_even_among_copies(self, count):
        points = torch.ones(6, 2, dtype=DOUBLE)
        points[0] = 5
        labels = k_means(points, count)
        assert set(labels.tolist()) == set(range(count))
        assert count == 1 or (labels == labels[0]).sum() == 1

    @pytest.mark.parametrize("seed", range(30))
    def test_tells_all_different_points_apart_where_there_are_clusters_enough(self, seed):
        generator = torch.Generator().manual_seed(seed)
        points = torch.randint(4, (8, 1), generator=generator).double()
        for count in range(len(points.unique()), 9):
            labels = k_means(points, count).tolist()
            assert set(labels) == set(range(count))
            assert inertia(points, labels) == pytest.approx(0)

    def test_finds_many_clusters_that_lie_apart(self):
        # centres drawn with equal chances would hardly ever fall into each of them
        generator = torch.Generator().manual_seed(0)
        planted = torch.arange(20).repeat_interleave(4)
        points = 100.0 * planted[:, None] + torch.rand(80, 1, dtype=DOUBLE, generator=generator)
        labels = k_means(points, 20)
        assert inertia(points, labels.tolist()) == pytest.approx(inertia(points, planted.tolist()))

    def test_leaves_each_point_with_the_nearest_mean(self):
        points = torch.randn(60, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
        labels = k_means(points, 7)
        means = torch.stack([points[labels == label].mean(0) for label in range(7)])
        assert torch.equal(torch.cdist(points, means).argmin(1), labels)

    def test_gives_the_same_clusters_each_time(self):
        points = torch.randn(40, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
        first = k_means(points, 11)
        torch.rand(3)
        assert torch.equal(k_means(points, 11), first)


def test_a_batch_norm_without_factors_is_left_unscaled():
    net = nn.Sequential(Pairs(), nn.Flatten(), nn.Linear(9, 2)).eval()
    net[0][1] = nn.BatchNorm2d(4, affine=False)
    net.eval()
    graph = find_groups(net, (2, 3, 3))
    images, kept = torch.randn(2, 2, 3, 3), {"0.0": torch.tensor([1, 2])}
    before = copy.deepcopy(net.state_dict())
    assert compensated(net, graph, images, kept, "folding").state_dict().keys() == before.keys()
