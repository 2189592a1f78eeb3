"""Networks in which one unit says the same as another, or a multiple of it."""

import copy

import torch
from torch import nn

from prunegym.pruning.calibration.statistics import calibrate, real_images
from prunegym.pruning.compensation import COMPENSATIONS, PlannedCut
from prunegym.pruning.graph import ChannelGraph
from prunegym.pruning.surgery.cutting import axis_cuts, cut
from tests.pruning.oracles import TRANSPOSED, example

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@torch.no_grad()
def related(name, group, unit, source, factor=1.0):
    """An example in which `unit` of a group is `factor` times `source`, if what lies between passes it on."""
    model, graph, images = example(name)
    model = copy.deepcopy(model)
    for member in group.writers:
        relate_(model.get_submodule(member.owner), member, unit, source, factor)
    for member in group.carriers:  # the writers' factor reaches them with their input
        relate_(model.get_submodule(member.owner), member, unit, source, factor, additive_only=True)
    return model, graph, images


def relate_(layer, member, unit, source, factor, additive_only=False):
    pairs = list(zip(member.channels[unit], member.channels[source], strict=True))
    norm = isinstance(layer, NORMS)
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = getattr(layer, name, None)
        if tensor is None:
            continue
        multiplied = name in ("bias", "running_mean") or not (additive_only or norm)
        for target, origin in pairs:
            value = output_slice(layer, tensor, origin) * (factor if multiplied else 1.0)
            output_slice(layer, tensor, target).copy_(value)


def output_slice(layer, tensor, channel):
    if isinstance(layer, TRANSPOSED) and tensor.dim() > 1:
        each = layer.out_channels // layer.groups
        per = layer.in_channels // layer.groups
        block = channel // each
        return tensor[block * per : (block + 1) * per, channel % each]
    return tensor[channel]


@torch.no_grad()
def equal_columns_(model, group, unit, source):
    """Let every reader weigh `unit` as it weighs `source`, and bare parameters hold the same for both."""
    for reader in group.readers:
        layer = model.get_submodule(reader.owner)
        for target, origin in zip(reader.channels[unit], reader.channels[source], strict=True):
            input_slice(layer, target).copy_(input_slice(layer, origin))
    for member in group.parameters:
        owner, _, name = member.owner.rpartition(".")
        tensor = getattr(model.get_submodule(owner), name).movedim(member.axis, 0)
        for target, origin in zip(member.channels[unit], member.channels[source], strict=True):
            tensor[target] = tensor[origin]


def input_slice(layer, channel):
    """What a reader's weight makes of one input channel."""
    if isinstance(layer, TRANSPOSED):
        return layer.weight[channel]
    groups = getattr(layer, "groups", 1)
    outputs = layer.weight.size(0) // groups
    block, place = divmod(channel, layer.weight.size(1))
    return layer.weight[block * outputs : (block + 1) * outputs, place]


def without(group, unit):
    return {group.name: torch.tensor([one for one in range(group.units) if one != unit])}


@torch.no_grad()
def compensated(model, graph: ChannelGraph, images, kept, compensation):
    """At full size, as a compensation leaves it."""
    changed = copy.deepcopy(model)
    calibration = calibrate(graph, real_images(model, [images]))
    planned = PlannedCut(model, graph, kept, axis_cuts(model, graph, kept), calibration)
    COMPENSATIONS[compensation].apply_(changed, planned)
    return changed


@torch.no_grad()
def cut_output(model, graph, images, kept, compensation):
    return cut(compensated(model, graph, images, kept, compensation), graph, kept)(images)
