import pytest
import torch
from torch import nn

from prunegym.pruning.calibration.sensitivity import error_curve
from prunegym.pruning.calibration.statistics import calibrate, real_images
from prunegym.pruning.criteria import CRITERIA
from prunegym.pruning.graph import find_groups
from tests.pruning.example_networks import EXAMPLES

RATIOS = (0.0, 0.25, 0.5, 0.75)


def curve_of(model, images, name, ratios=RATIOS):
    graph = find_groups(model, images.shape[1:])
    calibration = calibrate(graph, real_images(model, [images]), seed=0)
    group = graph.group(name)
    scores = CRITERIA["l1"](model, group, calibration)
    return error_curve(model, group, calibration, ratios=ratios, scores=scores)


def test_the_loss_is_the_variance_that_no_linear_map_of_the_kept_units_explains():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        model[0].weight[1] *= 0.2  # the smallest by the l1 norm of its weights
        model[0].bias[1] = 0.1
        images = torch.randn(400, 5, generator=generator)
        hidden = model[1](model[0](images)).double()
        wanted = hidden @ model[2].weight.double().T
    stays = torch.cat([hidden[:, [0, 2, 3]], torch.ones(400, 1, dtype=torch.float64)], dim=1)
    left = wanted - stays @ torch.linalg.lstsq(stays, wanted).solution
    expected = float(left.var(0, correction=0).sum() / wanted.var(0, correction=0).sum())
    assert expected > 1e-6
    # the ridge, a thousandth of the mean variance, costs a little more than the exact fit
    assert curve_of(model, images, "0", (0.25,))[0] == pytest.approx(expected, rel=0.05, abs=1e-4)


def test_units_that_copy_each_other_can_be_spared():
    model = EXAMPLES["plain"].model()
    conv, norm = model[0][0], model[0][1]
    with torch.no_grad():
        for tensor in (conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor[3:] = tensor[:3]
        conv.weight[3:] *= 0.1  # the copies go first, and the BatchNorm makes them equal again
        norm.running_mean[3:] *= 0.1
        norm.running_var[3:] *= 0.01
    spared = curve_of(model, EXAMPLES["plain"].images(16), "0.0", (0.5, 0.75))
    assert spared[0] < 0.01 < spared[1]


@pytest.mark.parametrize("name", ["projected", "concat", "grouped", "flatten", "mlp"])
def test_nothing_pruned_loses_nothing_and_more_pruned_loses_no_less(name):
    model, images = EXAMPLES[name].model(), EXAMPLES[name].images(32)
    for group in find_groups(model, images.shape[1:]).prunable:
        curve = curve_of(model, images, group.name)
        assert curve[0] == pytest.approx(0.0, abs=1e-9)
        assert list(curve) == sorted(curve)
        assert curve[-1] <= 1.0


def test_readers_without_moments_do_not_count():
    model, images = EXAMPLES["transposed"].model(), EXAMPLES["transposed"].images(8)
    groups = find_groups(model, images.shape[1:]).prunable
    readers = {group.name: [reader.owner for reader in group.readers] for group in groups}
    only_transposed = [name for name, owners in readers.items() if owners in (["up"], ["grouped"])]
    assert only_transposed
    for name in only_transposed:
        assert curve_of(model, images, name) == (0.0,) * len(RATIOS)
