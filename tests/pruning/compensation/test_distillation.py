import copy

import pytest
import torch
from torch import nn

from prunegym.pruning.calibration.statistics import CalibrationInputs, calibrate, real_images
from prunegym.pruning.graph import find_groups
from prunegym.pruning.method import Method
from prunegym.pruning.plan import CompressionPlan
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.oracles import assert_untouched, example, snapshot
from tests.pruning.plans import apply_to
from tests.pruning.plans import ratios as decision


def cut_by(compensation, name, inputs=None, model=None):
    """(dense, cut network, images)"""
    model, images = model or example(name)[0], EXAMPLES[name].images(96)
    graph = find_groups(model, images.shape[1:])
    plan = CompressionPlan({group.name: decision(0.6) for group in graph.prunable})
    calibration = calibrate(graph, inputs or real_images(model, images.split(32)))
    found = apply_to(model, graph, plan, calibration, method=Method(compensation=compensation))
    return model, found.model, images


@pytest.mark.parametrize("name", ["plain", "residual", "flatten"])
def test_the_cut_network_comes_nearer_to_the_dense_one(name):
    errors = []
    for compensation in ("distillation", "least-squares-progressive"):
        model, small, images = cut_by(compensation, name)
        with torch.no_grad():
            errors.append((small(images) - model(images)).square().mean())
    assert errors[0] < 0.96 * errors[1]


def test_batch_norms_keep_their_statistics_and_nothing_is_left_behind():
    model = copy.deepcopy(example("residual")[0])
    model.stem[0].weight.requires_grad_(False)
    before = snapshot(model)
    _, small, _ = cut_by("distillation", "residual", model=model)
    _, expected, _ = cut_by("least-squares-progressive", "residual", model=model)
    assert_untouched(model, before)
    for name, module in small.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.running_mean, expected.get_submodule(name).running_mean)
            assert torch.equal(module.running_var, expected.get_submodule(name).running_var)
    for network in (model, small):
        assert not any(module._forward_hooks for module in network.modules())
        assert all(parameter.grad is None for parameter in network.parameters())
        assert not network.stem[0].weight.requires_grad
        assert network.a[0].weight.requires_grad


def test_noise_is_not_followed():
    model = example("residual")[0]
    inputs = CalibrationInputs(tuple(EXAMPLES["residual"].images(96).split(32)), copy.deepcopy(model))
    one, other = (
        cut_by(name, "residual", inputs=inputs)[1].state_dict()
        for name in ("distillation", "least-squares-progressive")
    )
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def test_the_same_again():
    one, other = (cut_by("distillation", "plain")[1].state_dict() for _ in range(2))
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
