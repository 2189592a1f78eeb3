"""Compensated example networks, and what their readers compute."""

import copy

import torch
from torch import nn

from prunegym.pruning.calibration.statistics import calibrate, real_images
from prunegym.pruning.compensation import COMPENSATIONS, PlannedCut
from prunegym.pruning.surgery.cutting import axis_cuts
from tests.pruning.oracles import affordable, example, random_kept


def run(name, compensation, seed=0):
    """(dense, compensated at full size, graph, kept, cuts, images)"""
    model, graph, images = example(name)
    kept = random_kept(graph, seed)
    cuts = axis_cuts(model, graph, kept)
    changed = copy.deepcopy(model)
    planned = PlannedCut(model, graph, kept, cuts, calibrate(graph, real_images(model, [images])))
    with affordable(name, compensation):
        COMPENSATIONS[compensation].apply_(changed, planned)
    return model, changed, graph, kept, cuts, images


@torch.no_grad()
def outputs_of_reader(model, graph, name, x):
    """What a reader makes of `x`, through the BatchNorm that alone follows it: [rows, cout]."""
    y = model.get_submodule(name)(x)
    if graph.layers[name].batch_norm:
        y = model.get_submodule(graph.layers[name].batch_norm)(y)
    y = y if isinstance(model.get_submodule(name), nn.Linear) else y.movedim(1, -1)
    return y.reshape(-1, y.size(-1)).double()


@torch.no_grad()
def dense_inputs(model, images, names):
    found = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, kept=found[name]: kept.append(args[0])
        )
        for name in names
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return found


def masked(layer, x, kept):
    mask = torch.zeros(x.size(-1 if isinstance(layer, nn.Linear) else 1))
    mask[list(kept)] = 1
    return x * (mask if isinstance(layer, nn.Linear) else mask.view(-1, *[1] * (x.dim() - 2)))
