import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunegym.pruning.graph import find_groups
from prunegym.pruning.surgery.equalization import equalize, folded, fuse_batch_norms
from tests.pruning.example_networks import EXAMPLES, randomised
from tests.pruning.oracles import CONVOLUTIONS, TRANSPOSED, assert_untouched, example, snapshot

ACTIVATIONS = [nn.ReLU, nn.ReLU6, nn.SiLU, nn.PReLU, nn.Tanh, nn.Softplus]


class Mixed(nn.Module):
    """Residual, depthwise, grouped, concatenated; BatchNorms behind layers, and one before an activation."""

    def __init__(self, activation):
        super().__init__()
        self.act = activation()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.deep, self.deep_norm = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.wide, self.wide_norm = nn.Conv2d(8, 8, 1, groups=2, bias=False), nn.BatchNorm2d(8)
        self.before = nn.BatchNorm2d(16)
        self.last, self.last_norm = nn.Conv2d(16, 6, 3), nn.BatchNorm2d(6)
        self.linear, self.linear_norm = nn.Linear(6, 5), nn.BatchNorm1d(5)

    def forward(self, x):
        x = self.act(self.stem_norm(self.stem(x)))
        y = x + self.wide_norm(self.wide(self.act(self.deep_norm(self.deep(x)))))
        z = self.last_norm(self.last(self.act(self.before(torch.cat([x, y], 1)))))
        return self.linear_norm(self.linear(self.act(z).mean((2, 3))))


def mixed(activation):
    model = randomised(Mixed(activation))
    model.wide_norm.affine, model.wide_norm.weight, model.wide_norm.bias = False, None, None
    return model, find_groups(model, (3, 6, 6)), torch.randn(4, 3, 6, 6)


@torch.no_grad()
def assert_same(model, other, images, rtol=1e-5):
    expected = model(images)
    torch.testing.assert_close(other(images), expected, rtol=rtol, atol=rtol * float(expected.abs().max()))


def with_vectors(equalization):
    """The equalized layers with their vectors applied where they belong: around the layer."""
    model = copy.deepcopy(equalization.model)

    def along(module, x, vector):
        shape = [-1] if isinstance(module, nn.Linear) else [-1, *[1] * (x.dim() - 2)]
        return x * vector.to(x).view(shape)

    for name, v_in in equalization.v_in.items():
        v_out = equalization.v_out[name]
        module = model.get_submodule(name)
        module.register_forward_pre_hook(lambda layer, args, v=v_in: along(layer, args[0], v))
        module.register_forward_hook(lambda layer, args, y, v=v_out: along(layer, y, v))
    return model


class TestFusion:
    @pytest.mark.conformance
    @pytest.mark.parametrize("name", list(EXAMPLES))
    def test_keeps_the_function_of_every_example(self, name):
        model, graph, images = example(name)
        before = snapshot(model)
        assert_same(model, fuse_batch_norms(model, graph), images)
        assert_untouched(model, before)

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_keeps_the_function_between_any_activations(self, activation):
        model, graph, images = mixed(activation)
        assert_same(model, fuse_batch_norms(model, graph), images)

    def test_folds_exactly_the_batch_norms_that_alone_follow_a_layer(self):
        model, graph, _ = mixed(nn.ReLU)
        fused = fuse_batch_norms(model.train(), graph)
        left = {name for name, module in fused.named_modules() if isinstance(module, nn.BatchNorm2d)}
        assert left == {"before"}
        assert isinstance(fused.linear_norm, nn.Identity)
        assert model.training
        assert not fused.training

    def test_leaves_a_layer_alone_whose_weight_a_hook_computes(self):
        model, graph, images = example("plain")
        model = copy.deepcopy(model)
        model[0][0].register_forward_pre_hook(lambda layer, args: None)
        fused = fuse_batch_norms(model, graph)
        assert torch.equal(fused[0][0].weight, model[0][0].weight)
        assert isinstance(fused[0][1], nn.BatchNorm2d)
        assert_same(model, fused, images)


@pytest.mark.conformance
@pytest.mark.parametrize("name", list(EXAMPLES))
class TestEqualizationOfEveryExample:
    def test_keeps_the_function_with_its_vectors(self, name):
        model, graph, images = example(name)
        before = snapshot(model)
        assert_same(model, with_vectors(equalize(model, graph)), images)
        assert_untouched(model, before)

    def test_keeps_the_function_with_its_vectors_folded_back(self, name):
        model, graph, images = example(name)
        assert_same(model, folded(equalize(model, graph)), images)

    def test_gives_producers_and_consumers_of_every_unit_the_same_range(self, name):
        model, graph, _ = example(name)
        equalized = equalize(model, graph).model
        for group in graph.groups:
            for unit in range(group.units):
                written = [
                    weights_of_output(equalized.get_submodule(member.owner), channel)
                    for member in group.writers
                    for channel in member.channels[unit]
                ]
                read = [
                    weights_of_input(equalized.get_submodule(member.owner), channel)
                    for member in group.readers
                    for channel in member.channels[unit]
                ]
                if read:
                    produced, consumed = (max(w.abs().max().item() for w in side) for side in (written, read))
                    assert produced == pytest.approx(consumed, rel=1e-3)


def weights_of_output(layer, channel):
    if isinstance(layer, TRANSPOSED):
        group, place = divmod(channel, layer.out_channels // layer.groups)
        inputs = layer.in_channels // layer.groups
        return layer.weight[group * inputs : (group + 1) * inputs, place]
    return layer.weight[channel]


def weights_of_input(layer, channel):
    if isinstance(layer, TRANSPOSED):
        return layer.weight[channel]
    if not isinstance(layer, CONVOLUTIONS):
        return layer.weight[:, channel]
    group, place = divmod(channel, layer.in_channels // layer.groups)
    outputs = layer.out_channels // layer.groups
    return layer.weight[group * outputs : (group + 1) * outputs, place]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equalization_keeps_the_function_between_any_activations(activation):
    model, graph, images = mixed(activation)
    equalization = equalize(model, graph)
    assert_same(model, with_vectors(equalization), images)
    assert_same(model, folded(equalization), images)
    assert float((equalization.v_in["linear"] - 1).abs().max()) > 0.1


def test_the_scales_by_hand():
    first, second = nn.Linear(1, 3), nn.Linear(3, 1)
    model = nn.Sequential(first, nn.SiLU(), second)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[-8.0], [1.0], [5.0]]))
        first.bias.copy_(torch.tensor([3.0, 3.0, 3.0]))
        second.weight.copy_(torch.tensor([[2.0, -4.0, 0.0]]))  # nothing reads the third channel
        second.bias.fill_(7.0)
    equalization = equalize(model, find_groups(model, (1,)))
    found = equalization.model
    assert found[0].weight.flatten().tolist() == [-4.0, 2.0, 5.0]  # times sqrt(2 / 8), sqrt(4 / 1) and 1
    assert found[0].bias.tolist() == [1.5, 6.0, 3.0]
    assert found[2].weight.flatten().tolist() == [4.0, -2.0, 0.0]
    assert found[2].bias.tolist() == [7.0]
    assert equalization.v_out["0"].tolist() == [2.0, 0.5, 1.0]
    assert equalization.v_in["2"].tolist() == [0.5, 2.0, 1.0]
    assert equalization.v_in["0"].tolist() == equalization.v_out["2"].tolist() == [1.0]


def test_frozen_groups_take_part():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.last(F.softmax(self.conv(x), 1))

    model = randomised(Frozen())
    graph = find_groups(model, (3, 6, 6))
    assert not graph.prunable
    equalization = equalize(model, graph)
    assert float((equalization.v_in["last"] - 1).abs().max()) > 0.01
    assert_same(model, with_vectors(equalization), torch.randn(2, 3, 6, 6))
