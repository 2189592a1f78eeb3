"""Rules for layers with weights, and for norms: who writes, carries and reads channels."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunegym.pruning.graph.channels import spread
from prunegym.pruning.graph.propagation import Call, ChannelPropagation
from prunegym.pruning.graph.records import LayerShape
from prunegym.pruning.graph.rules import LAYER_RULES, function_rule, layer_rule, pointwise
from prunegym.pruning.graph.tracing import BATCH, BATCH_NORMS, LAYERS


@layer_rule(*LAYERS)
def weight_layer(propagation: ChannelPropagation, call: Call) -> Any:
    """A layer that reads all channels of its input and writes new ones; a depthwise one carries them."""
    module: Any = call.module
    dim = call.value.dim() - 1 if isinstance(module, nn.Linear) else 1
    if not _is_plain(call, dim):
        return propagation.freeze(call, f"no rule for {type(module).__name__}")
    shape = _layer_shape(call, module)
    propagation.add_layer(shape)
    if module._forward_pre_hooks:  # such as the older weight_norm and spectral_norm
        return propagation.freeze(
            call, f"{shape.name} has forward hooks, such as a runtime gate's or weight_norm's"
        )
    cin = propagation.along(call.index_args[0], dim, call)
    if cin is None:
        cin = propagation.channels.opaque(
            (shape.cin,), f"{shape.name} reads its channels across another dimension"
        )
    if shape.depthwise:
        cout = cin.repeat_interleave(shape.cout // shape.cin)
        propagation.add_slot("carriers", shape.name, cout)
        return spread(cout, call.value.shape, dim)
    known = propagation.slots.get(("writers", shape.name))
    cout = known.ids if known else propagation.channels.create(shape.cout)
    for ids in (cin, cout):
        by_group = ids.reshape(shape.conv_groups, -1)
        propagation.channels.tie(by_group, by_group[:1].expand_as(by_group).contiguous())
    propagation.add_slot("readers", shape.name, cin)
    propagation.add_slot("writers", shape.name, cout)
    return spread(cout, call.value.shape, dim)


@torch.no_grad()
def _is_plain(call: Call, dim: int) -> bool:
    """Return whether a variant does no more with its weights than torch's layer, as when it pads by itself.

    One that standardises or scales them would not take what compensation puts in their place.
    """
    module: Any = call.module
    if type(module) in LAYER_RULES:
        return True
    cin = module.in_features if isinstance(module, nn.Linear) else module.in_channels
    if not isinstance(call.value, Tensor) or call.args[0].size(dim) != cin:
        return False
    changed: Any = copy.deepcopy(module)
    bias = 0 if changed.bias is None else changed.bias
    changed.weight.copy_(2 * changed.weight)
    changed.bias = nn.Parameter(torch.ones(len(changed.weight)).to(changed.weight) + 2 * bias)
    return torch.allclose(changed(*call.args, **call.kwargs), 2 * call.value + 1, rtol=1e-3, atol=1e-3)


def _layer_shape(call: Call, module: Any) -> LayerShape:
    linear = isinstance(module, nn.Linear)
    cin, cout = (
        (module.in_features, module.out_features) if linear else (module.in_channels, module.out_channels)
    )
    conv_groups = 1 if linear else module.groups
    # a transposed convolution applies its kernel once per input position
    applied = call.args[0] if getattr(module, "transposed", False) else call.value
    applications = applied.numel() // applied.size(-1 if linear else 1)
    return LayerShape(
        name=str(call.node.target),
        cin=cin,
        cout=cout,
        kernel=1 if linear else math.prod(module.kernel_size),
        conv_groups=conv_groups,
        # a leading 1 is no batch: values from constants are computed once for all images
        positions=applications if applied.size(0) == 1 else applications // BATCH,
        calls=1,
        by_image=call.args[0].size(0) == BATCH,
        depthwise=1 < conv_groups == cin and not getattr(module, "transposed", False),
        batch_norm=_sole_batch_norm(call),
    )


def _sole_batch_norm(call: Call) -> str | None:
    users = list(call.node.users)
    rows_of_rows = isinstance(call.module, nn.Linear) and call.value.dim() > 2
    if len(users) != 1 or users[0].op != "call_module" or rows_of_rows:  # a BatchNorm1d would norm the rows
        return None
    name = str(users[0].target)
    owner = call.node.graph.owning_module
    assert owner is not None
    batch_norm = owner.get_submodule(name)
    known = type(batch_norm) in BATCH_NORMS  # a variant may compute more
    shared = sum(node.op == "call_module" and node.target == name for node in call.node.graph.nodes) > 1
    return name if known and not shared and batch_norm.running_mean is not None else None


@layer_rule(*BATCH_NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def per_channel_norm(propagation: ChannelPropagation, call: Call) -> Any:
    """One set of values per channel; the channels pass through."""
    ids = propagation.along(call.index_args[0], 1, call)
    if ids is None or call.value.shape != call.args[0].shape:
        return propagation.freeze(call, f"{call.name} normalises across channels")
    propagation.add_slot("carriers", call.name, ids)
    return spread(ids, call.value.shape, 1)


@layer_rule(nn.PReLU)
def prelu(propagation: ChannelPropagation, call: Call) -> Any:
    """One slope per channel, or one for all."""
    module: Any = call.module
    return pointwise(propagation, call) if module.num_parameters == 1 else per_channel_norm(propagation, call)


@layer_rule(nn.GroupNorm)
def group_norm(propagation: ChannelPropagation, call: Call) -> Any:
    """A norm over groups of channels, each of which is removed as a whole."""
    module: Any = call.module
    if module.num_groups == 1:
        return mixing_norm(propagation, call)
    ids = propagation.along(call.index_args[0], 1, call)
    if ids is not None:
        by_group = ids.reshape(module.num_groups, -1)
        propagation.channels.tie(by_group, by_group[:, :1].expand_as(by_group).contiguous())
    return per_channel_norm(propagation, call)


@layer_rule(nn.LayerNorm, nn.LocalResponseNorm, nn.CrossMapLRN2d, nn.Softmax2d, nn.RMSNorm)
@function_rule(F.layer_norm, F.group_norm, F.local_response_norm, F.normalize)
def mixing_norm(propagation: ChannelPropagation, call: Call) -> Any:
    """A norm over several channels changes its value when one of them is removed."""
    propagation.channels.freeze(call.index_args[0], f"{call.name} mixes channels")
    return call.index_args[0]


@function_rule(F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.linear, F.batch_norm)
def bare_weights(propagation: ChannelPropagation, call: Call) -> Any:
    """A layer's operation with weights that were computed, as by weight standardisation."""
    return propagation.freeze(call, f"{call.name} has weights that are no layer's own")
