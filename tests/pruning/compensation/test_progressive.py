import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunegym.pruning.calibration import unfolding
from prunegym.pruning.calibration.statistics import calibrate, real_images
from prunegym.pruning.calibration.synthesis import SYNTHESES
from prunegym.pruning.compensation import COMPENSATIONS, PlannedCut, sampled_rows
from prunegym.pruning.graph import find_groups
from prunegym.pruning.surgery.cutting import axis_cuts, cut
from tests.pruning.example_networks import EXAMPLES, Head, randomised, unit
from tests.pruning.oracles import example, random_kept

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def every_position(monkeypatch):
    """What the oracles see is all that the fit sees."""
    monkeypatch.setattr(unfolding, "POSITIONS_PER_IMAGE", 1000)


def compensated(model, images, kept, name="least-squares-progressive", inputs=None):
    """(graph, full-size copy after compensation)"""
    graph = find_groups(model, images.shape[1:])
    inputs = inputs or real_images(model, images.split(8))
    changed = copy.deepcopy(model)
    cuts = axis_cuts(model, graph, kept)
    COMPENSATIONS[name].apply_(changed, PlannedCut(model, graph, kept, cuts, calibrate(graph, inputs)))
    return graph, changed


def ridge(u, target, weight):
    """Weights near `weight` and a shift that map rows u to the target: by lstsq on a stacked system."""
    centred, residual = u - u.mean(0), target - u @ weight.T
    penalty = (sampled_rows.RIDGE * centred.square().mean() * len(u)).sqrt() * torch.eye(
        u.size(1), dtype=DOUBLE
    )
    stacked = torch.cat([residual - residual.mean(0), torch.zeros(u.size(1), target.size(1), dtype=DOUBLE)])
    change = torch.linalg.lstsq(torch.cat([centred, penalty]), stacked).solution.T
    return weight + change, residual.mean(0) - change @ u.mean(0)


def columns(x):
    return F.unfold(x.double(), 3, padding=1).transpose(1, 2).flatten(0, 1)


@torch.no_grad()
def test_each_layer_is_fitted_to_the_dense_output_on_what_the_compressed_layers_leave():
    model = randomised(nn.Sequential(unit(3, 6), unit(6, 5), unit(5, 4), Head(4)))
    images = torch.randn(24, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    kept = {"0.0": torch.tensor([0, 2, 5]), "1.0": torch.tensor([1, 3])}
    _, changed = compensated(model, images, kept)
    dense, compressed = model[0](images), model[0](images)
    for place, stays in ((1, kept["0.0"]), (2, kept["1.0"])):
        conv, norm = model[place][0], model[place][1]
        target = conv(dense).double().flatten(2).mT.flatten(0, 1)
        before = conv.weight[:, stays].double().flatten(1)
        weight, shift = ridge(columns(compressed[:, stays]), target, before)
        torch.testing.assert_close(
            changed[place][0].weight[:, stays].double().flatten(1), weight, rtol=1e-3, atol=1e-4
        )
        moved = norm.running_mean - changed[place][1].running_mean
        torch.testing.assert_close(moved.double(), shift, rtol=1e-3, atol=1e-4)
        few = torch.zeros_like(compressed)
        few[:, stays] = compressed[:, stays]
        dense, compressed = model[place](dense), changed[place](few)


class TwoBranches(nn.Module):
    """A sum of two branches; `b` reads a group of its own."""

    def __init__(self, joined=torch.add):
        super().__init__()
        self.a, self.b, self.c = unit(3, 8), unit(3, 8), unit(6, 4)
        self.a2 = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.b2 = nn.Conv2d(8, 6, 3, padding=1)
        self.joined, self.head = joined, Head(4)

    def total(self, x):
        return self.joined(self.a2(self.a(x)), self.b2(self.b(x)))

    def forward(self, x):
        return self.head(self.c(torch.relu(self.total(x))))


def add_in_place(one, other):
    one += other
    return one


@torch.no_grad()
@pytest.mark.parametrize("joined", [torch.add, lambda one, other: one + other, add_in_place])
def test_a_layer_before_a_sum_makes_up_for_what_the_other_summand_lost(joined):
    model = randomised(TwoBranches(joined))
    images = torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    kept = {"b.0": torch.tensor([4])}
    graph, changed = compensated(model, images, kept)
    assert not torch.equal(changed.a2[0].weight, model.a2[0].weight)
    alone = copy.deepcopy(changed)
    alone.a2.load_state_dict(model.a2.state_dict())
    errors = [
        (cut(one, graph, kept).total(images) - model.total(images)).square().mean()
        for one in (changed, alone)
    ]
    assert errors[0] < 0.95 * errors[1]


@torch.no_grad()
def test_what_comes_before_the_first_cut_stays_as_it_is():
    model = randomised(nn.Sequential(unit(3, 6), unit(6, 5), unit(5, 4), Head(4)))
    _, changed = compensated(model, torch.randn(8, 3, 6, 6), {"1.0": torch.tensor([0, 4])})
    for place in (0, 1):
        for key, tensor in model[place].state_dict().items():
            assert torch.equal(changed[place].state_dict()[key], tensor)


@torch.no_grad()
@pytest.mark.conformance
@pytest.mark.parametrize("name", list(EXAMPLES))
def test_no_layer_that_lost_nothing_gains_a_bias(name):
    model, graph, images = example(name)
    kept = random_kept(graph)
    _, changed = compensated(model, images, kept)
    readers = {one.owner for one in axis_cuts(model, graph, kept) if one.axis == "in"}
    gained = {key.rpartition(".")[0] for key in changed.state_dict().keys() - model.state_dict().keys()}
    assert gained <= readers


@torch.no_grad()
@pytest.mark.parametrize("name", ["plain", "residual", "padded", "concat", "depthwise"])
def test_the_output_is_nearer_than_after_least_squares_on_dense_inputs(name):
    model, images = example(name)[0], EXAMPLES[name].images(96)
    graph = find_groups(model, images.shape[1:])
    kept = {group.name: torch.arange(group.units // 2 + 1) for group in graph.prunable}
    errors = []
    for compensation in ("least-squares-progressive", "least-squares"):
        changed = compensated(model, images, kept, compensation)[1]
        errors.append((cut(changed, graph, kept)(images) - model(images)).square().mean())
    assert errors[0] < 0.97 * errors[1]


@torch.no_grad()
@pytest.mark.parametrize("synthesis", ["noise", "layerwise"])
def test_noise_is_left_at_plain_least_squares(synthesis):
    model, images = example("residual")[0], EXAMPLES["residual"].images(8)
    kept = {"a.0": torch.tensor([0, 3])}
    inputs = SYNTHESES[synthesis](model, images.shape[1:], seed=0, progress=False)
    one, other = (
        compensated(model, images, kept, name, inputs)[1].state_dict()
        for name in ("least-squares-progressive", "least-squares")
    )
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def test_fewer_rows_than_inputs_give_the_same_fit():
    x = torch.randn(2, 12, 30, dtype=DOUBLE)
    residual = torch.randn(2, 12, 4, dtype=DOUBLE)
    change, shift = sampled_rows.fit_change(x, residual)
    for group in range(2):
        weight, moved = ridge(x[group], residual[group], torch.zeros(4, 30, dtype=DOUBLE))
        torch.testing.assert_close(change[group], weight)
        torch.testing.assert_close(shift[group], moved)
