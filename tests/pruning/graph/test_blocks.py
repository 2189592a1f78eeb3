"""Residual blocks that can be left out."""

import copy

import pytest
import torch
from torch import nn

from prunegym.pruning.graph import find_groups
from prunegym.pruning.graph.blocks import find_blocks, without_blocks
from prunegym.pruning.networks.registry import resolve_network
from tests.pruning.example_networks import Basic, Head, randomised, unit
from tests.pruning.oracles import example


def found(model, shape=(3, 6, 6)):
    model = model.eval()
    return find_blocks(model, find_groups(model, shape))


def names(search):
    return [block.name for block in search.blocks]


def test_blocks_of_three_kinds_are_found_in_execution_order():
    model, graph, _ = example("blocks")
    search = find_blocks(model, graph)
    assert names(search) == ["1", "2.0", "2.1"]
    assert search.blocks[0].layers == ("1.first.0", "1.second.0")
    assert search.refused == {}


@pytest.mark.parametrize(
    ("name", "count"), [("cifar_resnet20", 7), ("cifar_resnet56", 25), ("digits_resnet", 4)]
)
def test_a_resnet_loses_any_block_but_those_that_change_the_shape(name, count):
    spec = resolve_network(name)
    search = found(spec.build(), spec.input_shape)
    assert len(search.blocks) == count
    assert set(search.refused) == {"layer2.0", "layer3.0"}
    assert set(search.refused.values()) == {"what its residual sum adds is not its input itself"}


class Twice(nn.Module):
    """Two residual sums in one module."""

    def __init__(self):
        super().__init__()
        self.a, self.b = unit(6, 6), unit(6, 6)

    def forward(self, x):
        x = x + self.a(x)
        return x + self.b(x)


class ThenConvolved(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = unit(6, 6), unit(6, 6)

    def forward(self, x):
        return self.b(x + self.a(x))


class Sibling(nn.Module):
    """Its branch reads another tensor than its shortcut."""

    def __init__(self):
        super().__init__()
        self.a = unit(6, 6)

    def forward(self, pair):
        return pair[0] + self.a(pair[1])


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.both, self.head = unit(3, 6), unit(3, 6), Sibling(), Head(6)

    def forward(self, x):
        return self.head(self.both((self.left(x), self.right(x))))


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (Twice(), "it holds several residual sums"),
        (ThenConvolved(), "more than an activation follows its residual sum"),
    ],
)
def test_what_is_no_plain_block_must_stay_and_says_why(block, reason):
    search = found(nn.Sequential(unit(3, 6), block, unit(6, 4), Head(4)))
    assert search.blocks == ()
    assert search.refused == {"1": reason}


def test_a_block_that_two_tensors_enter_must_stay():
    assert found(Pair()).refused == {"both": "2 tensors enter it and 1 leave it, not one each"}


def test_channels_that_begin_in_a_block_and_go_on_after_it_keep_it():
    # the block's convolution comes first, so that the trunk of three channels bears its name
    search = found(nn.Sequential(Basic(3, 5), Basic(3, 4), unit(3, 6), Head(6)))
    assert search.refused.keys() <= {"0", "1"}
    assert all("begins in it and goes on after it" in reason for reason in search.refused.values())


class Asks(nn.Module):
    """Asks its block for a layer, and changes in place what the block gives."""

    def __init__(self, *, asks):
        super().__init__()
        self.stem, self.block, self.last, self.head = unit(3, 6), Basic(6, 5), unit(6, 4), Head(4)
        self.asks = asks

    def forward(self, x):
        stem = self.stem(x)
        out = self.block(stem)
        if self.asks:
            return self.head(self.last(out * self.block.first[0].weight.abs().max()))
        return self.head(self.last(out.add_(1.0))) + stem.mean()


@pytest.mark.parametrize("asks", [True, False])
def test_a_block_that_the_forward_around_it_cannot_do_without_must_stay(asks):
    search = found(randomised(Asks(asks=asks)))
    assert search.blocks == ()
    assert search.refused["block"] in (
        "the forward around it does not run without it",
        "2 tensors enter it and 1 leave it, not one each",
    )


def test_a_block_that_shares_its_weights_must_stay():
    model = nn.Sequential(unit(3, 6), Basic(6, 6), unit(6, 6), Head(6))
    model[2][0].weight = model[1].first[0].weight
    assert found(model).refused == {"1": "the network uses its tensors elsewhere too"}


@pytest.mark.parametrize("gone", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)])
def test_the_graph_without_blocks_is_that_of_the_network_without_them(gone):
    model, graph, images = example("blocks")
    blocks = [find_blocks(model, graph).blocks[number] for number in gone]
    shorter = without_blocks(graph, blocks)
    small = copy.deepcopy(model)
    for block in blocks:
        small.set_submodule(block.name, nn.Identity())
    traced = find_groups(small, graph.input_shape)
    assert {(one.name, one.layers, one.frozen) for one in shorter.groups} == {
        (one.name, one.layers, one.frozen) for one in traced.groups
    }
    assert shorter.layers == traced.layers
    assert shorter.macs == traced.macs
    program = torch.fx.GraphModule(small, shorter.program)
    assert torch.equal(program(images), small(images))
    assert list(graph.layers) == list(example("blocks")[1].layers)  # the graph itself is as it was
