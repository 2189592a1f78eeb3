"""One small rule per operation that computes; operations that only move data run on the index tensor.

An operation in none of the tables has no rule: the channels it touches are frozen, with that reason.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunegym.pruning.graph.channels import at_first, profile, spread, varying
from prunegym.pruning.graph.propagation import Call, ChannelPropagation, Rule
from prunegym.pruning.graph.tracing import is_layer_variant

LAYER_RULES: dict[type[nn.Module] | str, Rule] = {}  # keyed by type, or by name for foreign layers
FUNCTION_RULES: dict[Any, Rule] = {}  # keyed by function, or by name for methods and foreign functions


def rule_for(call: Call) -> Rule | None:
    """Return the rule for an operator, by the type of its module or by its function."""
    if call.module is not None:
        kinds = type(call.module).__mro__ if is_layer_variant(call.module) else (type(call.module),)
        names = [f"{kind.__module__}.{kind.__qualname__}" for kind in kinds]
        return next((LAYER_RULES[key] for key in (*kinds, *names) if key in LAYER_RULES), None)
    target = getattr(call.node.target, "function", call.node.target)  # of an `Operator`
    qualified = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"
    return FUNCTION_RULES.get(target) or FUNCTION_RULES.get(qualified)


def layer_rule(*types: type[nn.Module] | str) -> Callable[[Rule], Rule]:
    """Return a decorator that registers a rule for layers of exactly these types; foreign ones go by name."""

    def file(rule: Rule) -> Rule:
        LAYER_RULES.update(dict.fromkeys(types, rule))
        return rule

    return file


def function_rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Return a decorator that registers a rule for functions; methods and foreign functions go by name."""

    def file(rule: Rule) -> Rule:
        FUNCTION_RULES.update(dict.fromkeys(targets, rule))
        return rule

    return file


@layer_rule(
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus,
    nn.Softsign, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Tanhshrink, nn.Hardtanh, nn.Hardswish,
    nn.Hardsigmoid, nn.Hardshrink, nn.Softshrink, nn.Threshold, nn.Identity, nn.Dropout, nn.Dropout1d,
    nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
)  # fmt: skip
@function_rule(
    F.relu, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish, F.softplus, F.softsign,
    F.sigmoid, F.logsigmoid, F.tanh, F.tanhshrink, F.hardtanh, F.hardswish, F.hardsigmoid, F.hardshrink,
    F.softshrink, F.threshold, F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.relu_,
    torch.relu, torch.relu_, torch.sigmoid, torch.tanh, torch.exp, torch.log, torch.sqrt, torch.rsqrt,
    torch.abs, torch.square, torch.clamp, torch.neg, torch.erf, torch.reciprocal, torch.zeros_like,
    torch.ones_like, operator.neg, operator.abs, "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "exp",
    "log", "sqrt", "rsqrt", "abs", "square", "clamp", "clamp_",
    "torchvision.ops.stochastic_depth.stochastic_depth",  # the identity outside of training
    "neg", "contiguous", "clone", "detach", "float", "half", "double", "to", "type", "type_as", "cpu",
    "cuda",
)  # fmt: skip
def pointwise(propagation: ChannelPropagation, call: Call) -> Any:
    """Every entry on its own: the channels pass through."""
    return call.index_args[0]


@function_rule(
    operator.add, operator.sub, operator.mul, operator.truediv, operator.iadd, operator.isub, operator.imul,
    operator.itruediv, operator.pow, operator.floordiv, operator.mod, torch.add, torch.sub, torch.mul,
    torch.div, torch.multiply, torch.subtract, torch.true_divide, torch.pow, torch.maximum, torch.minimum,
    "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "pow", "multiply", "maximum", "minimum",
)  # fmt: skip
def join(propagation: ChannelPropagation, call: Call) -> Any:
    """Work entry by entry on two tensors, whose channels are then coupled."""
    indices = (*call.index_args, *call.index_kwargs.values())
    nodes = (*call.node.args, *call.node.kwargs.values())
    operands = [pair for pair in zip(indices, nodes, strict=True) if isinstance(pair[0], Tensor)]
    result, source = operands[0]
    for index, node in operands[1:]:
        result = join_pair(propagation, call, (result, source), (index, node))
    return result.expand(call.value.shape)


def join_pair(
    propagation: ChannelPropagation, call: Call, first: tuple[Tensor, Any], second: tuple[Tensor, Any]
) -> Tensor:
    """Couple the channels of two tensors, given with the nodes they come from; return the index tensor."""
    shape = torch.broadcast_shapes(first[0].shape, second[0].shape)
    a, b = (
        index.view((1,) * (len(shape) - index.dim()) + tuple(index.shape)) for index, _ in (first, second)
    )
    for small, large in ((a, b), (b, a)):
        if any(small.size(dim) == 1 for dim in varying(large)) and bool((small >= 0).any()):
            # one channel spread over many: it is read here, not coupled
            propagation.channels.freeze(small, f"{call.name} spreads it over other channels")
            return large.expand(shape)
    a, b = (propagation.channels.separate(index.expand(shape)) for index in (a, b))
    for index, (plain, source) in ((a, second), (b, first)):
        if bool((index >= 0).any()) and bool((plain < 0).any()):
            _meet_constant(propagation, call, index, plain, source)
    shared = [dim for dim in range(len(shape)) if dim not in {*varying(a), *varying(b)}]
    core_a, core_b = torch.broadcast_tensors(at_first(a, shared), at_first(b, shared))
    propagation.channels.tie(core_a, core_b)
    return propagation.channels.separate(torch.where(core_a >= 0, core_a, core_b).expand(shape))


def _meet_constant(
    propagation: ChannelPropagation, call: Call, index: Tensor, constant: Tensor, source: Any
) -> None:
    """Couple a constant of one value per channel with the channels: a parameter can be cut, others cannot."""
    offset = index.dim() - constant.dim()
    dims = [dim for dim in varying(index) if dim >= offset and constant.size(dim - offset) > 1]
    if not dims:
        return
    if source.op == "get_attr" and bool((constant < 0).all()):
        propagation.add_slot("parameters", str(source.target), profile(index, dims[0]), axis=dims[0] - offset)
    else:
        propagation.channels.freeze(index, f"{call.name} joins it with a constant per channel")


@layer_rule(
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.LPPool1d,
    nn.LPPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.Upsample, nn.UpsamplingNearest2d,
    nn.UpsamplingBilinear2d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d,
    nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ConstantPad2d,
)  # fmt: skip
@function_rule(
    F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.lp_pool1d,
    F.lp_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.adaptive_max_pool1d,
    F.adaptive_max_pool2d, F.adaptive_max_pool3d, F.interpolate, F.upsample, torch.max_pool2d,
)  # fmt: skip
def within_channel(propagation: ChannelPropagation, call: Call) -> Any:
    """Work on each channel's positions alone."""
    ids = propagation.along(call.index_args[0], 1, call) if isinstance(call.value, Tensor) else None
    if ids is None:
        return propagation.freeze(call, f"{call.name} works across channels")
    return spread(ids, call.value.shape, 1)


@function_rule(
    torch.mean, torch.sum, torch.amax, torch.amin, torch.max, torch.min, torch.var, torch.std,
    torch.logsumexp, torch.argmax, torch.norm, "mean", "sum", "amax", "amin", "max", "min", "var", "std",
    "argmax", "norm",
)  # fmt: skip
def reduction(propagation: ChannelPropagation, call: Call) -> Any:
    """Reduce dimensions; a reduction over channels changes its value when one is removed."""
    if isinstance(call.argument(1, "other"), Tensor):
        return join(propagation, call)  # torch.max(a, b)
    index = call.index_args[0]
    dims = call.argument(2 if call.name == "norm" else 1, "dim")
    dims = range(index.dim()) if dims is None else [dims] if isinstance(dims, int) else dims
    reduced = {dim % index.dim() for dim in dims}
    if reduced & set(varying(index)):
        return propagation.freeze(call, f"{call.name} reduces over channels")
    first = at_first(index, sorted(reduced))
    return pytree.tree_map_only(Tensor, lambda value: first.reshape(value.shape), call.value)


@layer_rule(nn.Softmax, nn.LogSoftmax)
@function_rule(F.softmax, F.log_softmax, torch.softmax, torch.log_softmax, "softmax", "log_softmax")
def softmax(propagation: ChannelPropagation, call: Call) -> Any:
    """Mix the entries along one dimension."""
    index = call.index_args[0]
    dim = call.module.dim if call.module is not None else call.argument(1, "dim")
    if dim is None or dim % index.dim() in varying(index):
        propagation.channels.freeze(index, f"{call.name} mixes channels")
    return index
