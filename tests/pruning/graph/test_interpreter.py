import copy

import pytest
import torch
from torch import nn

from prunegym.pruning.graph import find_groups
from prunegym.pruning.graph.interpreter import Lockstep
from tests.pruning.example_networks import EXAMPLES, NormAndActivation, randomised, unit
from tests.pruning.oracles import example


def outputs(graph, lockstep):
    """What each variant returns."""
    (end,) = (node for node in graph.program.nodes if node.op == "output")
    for node in lockstep:
        last = node
    assert last is end.args[0]
    return lockstep.values(last)


@torch.no_grad()
@pytest.mark.conformance
@pytest.mark.parametrize("name", list(EXAMPLES))
def test_each_variant_computes_what_it_computes_alone(name):
    model, graph, images = example(name)
    other = randomised(copy.deepcopy(model), 3)
    found = outputs(graph, Lockstep(graph, [model, other], images))
    torch.testing.assert_close(found, [model(images), other(images)])


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.last = unit(3, 5), nn.Conv2d(5, 2, 1)

    def forward(self, x=None, scale=1.5):
        return self.last(self.conv(x) * scale)


@torch.no_grad()
def test_an_argument_that_is_left_out_has_its_default():
    model = randomised(Scaled()).eval()
    graph, images = find_groups(model, (3, 6, 6)), torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(outputs(graph, Lockstep(graph, [model], images)), [model(images)])


def chain():
    model = nn.Sequential(unit(3, 5), unit(5, 4), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    return model, find_groups(model, (3, 6, 6))


@torch.no_grad()
def test_weights_changed_on_the_way_count_from_there_on():
    model, graph = chain()
    images, changed = torch.randn(2, 3, 6, 6), copy.deepcopy(model)
    lockstep = Lockstep(graph, [model, changed], images)
    for node in lockstep:
        if node.target == "1.0":
            torch.testing.assert_close(lockstep.inputs(node), [model[0](images)] * 2)
            changed[1][0].weight.mul_(2)
            changed[0][0].weight.zero_()  # too late
        last = node
    expected = copy.deepcopy(model)
    expected[1][0].weight.mul_(2)
    torch.testing.assert_close(lockstep.values(last)[1], expected(images))


@torch.no_grad()
def test_a_replaced_value_is_what_comes_after_sees():
    model, graph = chain()
    images = torch.randn(2, 3, 6, 6)
    lockstep = Lockstep(graph, [model, model], images)
    for node in lockstep:
        if node.target == "1.0":
            lockstep.replace(node.args[0], 1, torch.zeros_like(lockstep.inputs(node)[1]))
        last = node
    expected = model[3](model[2](model[1](torch.zeros(2, 5, 6, 6))))
    torch.testing.assert_close(lockstep.values(last), [model(images), expected])


def layerwise_inputs(model, shape, count=4000):
    graph = find_groups(model, shape)
    lockstep = Lockstep(graph, [model], torch.randn(count, *shape), layerwise=0)
    return {node.target: lockstep.inputs(node)[0] for node in lockstep if node.target in graph.layers}


@torch.no_grad()
def test_layer_by_layer_a_writer_reads_gaussians_of_the_batch_norm_before_it():
    # 1x1 on single pixels: a writer whose output copies its input shows what it read
    first, second, third = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 3, 1)
    model = nn.Sequential(first, nn.BatchNorm2d(2), second, third, nn.Flatten(), nn.Linear(3, 2)).eval()
    model[1].weight.copy_(torch.tensor([-2.0, 0.5]))
    model[1].bias.copy_(torch.tensor([3.0, -1.0]))
    second.weight.copy_(torch.eye(2)[:, :, None, None])
    second.bias.zero_()
    read = layerwise_inputs(model, (2, 1, 1))["3"].flatten(1)
    torch.testing.assert_close(read.mean(0), torch.tensor([3.0, -1.0]), atol=0.15, rtol=0)
    torch.testing.assert_close(read.std(0), torch.tensor([2.0, 0.5]), atol=0.1, rtol=0)
    assert abs(read.T.corrcoef()[0, 1]) < 0.1


@torch.no_grad()
def test_layer_by_layer_a_norm_that_activates_too_does_so():
    copying, last = nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 3, 1)
    norm = NormAndActivation(2)
    model = nn.Sequential(nn.Conv2d(2, 2, 1), norm, copying, last, nn.Flatten(), nn.Linear(3, 2)).eval()
    copying.weight.copy_(torch.eye(2)[:, :, None, None])
    norm.running_mean.fill_(7.0)
    norm.running_var.fill_(5.0)
    norm.weight.copy_(torch.tensor([2.0, 0.5]))
    norm.bias.copy_(torch.tensor([3.0, -1.0]))
    read = layerwise_inputs(model, (2, 1, 1))["3"].flatten(1)
    drawn = torch.randn(4000, 2) * norm.weight + norm.bias
    expected = nn.functional.silu(drawn)
    torch.testing.assert_close(read.mean(0), expected.mean(0), atol=0.15, rtol=0)
    torch.testing.assert_close(read.std(0), expected.std(0), atol=0.1, rtol=0)


class Sum(nn.Module):
    """Two BatchNorms into one sum, and a layer that copies what it reads."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)) for _ in range(2))
        self.copying, self.last = nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 3, 1)
        self.copying.weight.data.copy_(torch.eye(2)[:, :, None, None])

    def forward(self, x):
        return self.last(self.copying(torch.relu(self.a(x) + self.b(x)))).flatten(1)


@torch.no_grad()
def test_layer_by_layer_a_sum_adds_one_draw_for_each_batch_norm():
    model = Sum().eval()
    model.a[1].bias.fill_(10.0)
    model.a[1].weight.fill_(3.0)
    model.b[1].bias.fill_(20.0)
    model.b[1].weight.fill_(-4.0)
    read = layerwise_inputs(model, (2, 1, 1))["last"].flatten(1)  # so far from zero that ReLU passes all
    torch.testing.assert_close(read.mean(0), torch.tensor([30.0, 30.0]), atol=0.4, rtol=0)
    torch.testing.assert_close(read.std(0), torch.tensor([5.0, 5.0]), atol=0.3, rtol=0)


@torch.no_grad()
def test_layer_by_layer_the_writer_ties_channels_that_the_gaussians_do_not():
    model = nn.Sequential(
        unit(2, 2), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 3, 1), nn.Flatten(), nn.Linear(3, 2)
    ).eval()
    model[1].weight.fill_(1.0)
    read = layerwise_inputs(model, (2, 1, 1))["2"].flatten(1)
    assert read.T.corrcoef()[0, 1] > 0.999
