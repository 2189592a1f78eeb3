"""The layers that read a trunk after a block was left out of it."""

import copy

import pytest
import torch
from torch import nn

from prunegym.pruning.calibration.statistics import real_images
from prunegym.pruning.calibration.synthesis import SYNTHESES
from prunegym.pruning.compensation.blocks import refit_after_blocks_
from prunegym.pruning.graph.blocks import find_blocks, without_blocks
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.oracles import example


def refitted(gone, inputs=None, count=64):
    """(the network without blocks as it is, the same refitted, images)"""
    model, graph, _ = example("blocks")
    images = EXAMPLES["blocks"].images(count)
    blocks = [one for one in find_blocks(model, graph).blocks if one.name in gone]
    bare = copy.deepcopy(model)
    for block in blocks:
        bare.set_submodule(block.name, nn.Identity())
    small = copy.deepcopy(bare)
    inputs = inputs or real_images(model, [images])
    refit_after_blocks_(small, model, graph, without_blocks(graph, blocks), inputs, blocks)
    return bare, small, images


def error(network, images, layer):
    """Of a layer's output, behind its BatchNorm where it has one: that is where the shift goes."""
    outputs = []
    for each in (network, example("blocks")[0]):
        handle = each.get_submodule(layer).register_forward_hook(lambda _, args, y: outputs.append(y))
        with torch.no_grad():
            each(images)
        handle.remove()
    return float((outputs[0] - outputs[1]).square().mean())


@pytest.mark.parametrize("gone", [("1",), ("2.0",), ("2.1",), ("1", "2.1"), ("1", "2.0", "2.1")])
def test_the_next_reader_is_nearer_to_what_it_gave_on_these_images(gone):
    bare, small, images = refitted(gone)
    assert error(small, images, "3.1") < 0.9 * error(bare, images, "3.1")


def test_only_readers_after_the_block_change():
    bare, small, _ = refitted(("2.0",))
    before, after = bare.state_dict(), small.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    # what reads the trunk later: the next block's first layer, and the layer behind the trunk
    assert changed == {"2.1.first.0.weight", "2.1.first.1.running_mean", "3.0.weight", "3.1.running_mean"}


def test_the_dense_network_stays_bit_equal():
    before = copy.deepcopy(example("blocks")[0].state_dict())
    refitted(("1", "2.0"))
    assert all(torch.equal(one, before[name]) for name, one in example("blocks")[0].state_dict().items())


@pytest.mark.parametrize("synthesis", ["layerwise", "noise"])
def test_inputs_that_do_not_run_through_the_network_itself_refit_nothing(synthesis):
    model, graph, _ = example("blocks")
    inputs = SYNTHESES[synthesis](model, graph.input_shape, seed=0, progress=False)
    bare, small, _ = refitted(("1",), inputs)
    after = small.state_dict()
    assert all(torch.equal(one, after[name]) for name, one in bare.state_dict().items())
