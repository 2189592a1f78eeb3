"""Rules for operators that only move data: they run on the index tensor, their sizes are shape constants."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from prunegym.pruning.graph.channels import profile, varying
from prunegym.pruning.graph.propagation import Call, ChannelPropagation
from prunegym.pruning.graph.rules import function_rule, join_pair, layer_rule


@layer_rule(nn.Flatten, nn.PixelShuffle, nn.PixelUnshuffle)
@function_rule(
    torch.flatten, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze, torch.cat, torch.concat,
    torch.stack, torch.flip, torch.unbind, F.pixel_shuffle, F.pixel_unshuffle,
    "flatten", "permute", "transpose", "t", "squeeze", "unsqueeze", "flip", "unbind", "expand_as", "repeat",
    "view_as", "reshape_as",
)  # fmt: skip
def move(propagation: ChannelPropagation, call: Call) -> Any:
    """Move entries; all sizes follow from the input's."""
    moved = _on_index(call)
    return pytree.tree_map_only(Tensor, propagation.channels.separate, moved)


@function_rule(torch.reshape, "view", "reshape", "expand")
def resize(propagation: ChannelPropagation, call: Call) -> Any:
    """Reshape to sizes given as arguments, of which the literal ones count channels."""
    # a size computed from the channels' number must be the one that changes: the others stay in the formula
    computed = [dim for dim, size in enumerate(_sizes(call)) if isinstance(size, fx.Node)]
    index = propagation.channels.separate(_on_index(call), preferred=computed)
    for dim in varying(index):
        _size_constant(propagation, call, index, dim)
    return index


def _sizes(call: Call) -> Sequence[Any]:
    sizes: tuple[Any, ...] = call.node.args[1:]
    return sizes[0] if sizes and isinstance(sizes[0], (tuple, list)) else sizes


def _size_constant(propagation: ChannelPropagation, call: Call, index: Tensor, dim: int) -> None:
    sizes = _sizes(call)
    if not sizes:
        propagation.channels.freeze(index, f"{call.name} takes its sizes in a way that is not understood")
        return
    literal = sizes[dim] if dim < len(sizes) else None  # one computed torch.Size for all
    if isinstance(literal, int) and literal != -1:  # a computed size follows by itself
        path = ("args", 1 + dim) if sizes == call.node.args[1:] else ("args", 1, dim)
        propagation.add_constant(call.node, path, profile(index, dim))


@layer_rule(nn.ChannelShuffle)
@function_rule(F.channel_shuffle)
def channel_shuffle(propagation: ChannelPropagation, call: Call) -> Any:
    """Interleave groups of channels, which must stay equally many."""
    groups: Any = call.module.groups if call.module is not None else call.argument(1, "groups")
    ids = propagation.along(call.index_args[0], 1, call)
    if ids is None:
        return propagation.freeze(call, f"{call.name} works across channels")
    by_group = ids.reshape(groups, -1)
    propagation.channels.tie(by_group, by_group[:1].expand_as(by_group).contiguous())
    return _on_index(call)


@function_rule(torch.chunk, torch.split, "chunk", "split")
def split(propagation: ChannelPropagation, call: Call) -> Any:
    """Cut into pieces: explicit sizes keep them apart when channels are removed."""
    index = call.index_args[0]
    pieces = _on_index(call)
    dim = call.argument(2, "dim", 0) % index.dim()
    if dim in varying(index):
        for i, piece in enumerate(pieces):
            propagation.add_constant(call.node, ("split", i), profile(piece, dim))
    return pieces


@function_rule(operator.getitem)
def getitem(propagation: ChannelPropagation, call: Call) -> Any:
    """Take an item of a tuple, or a part of a tensor."""
    source, key = call.index_args
    if not isinstance(source, Tensor):
        return source[key]
    part = _part(propagation, call)
    return propagation.freeze(call, part) if isinstance(part, str) else part


@function_rule(operator.setitem)
def setitem(propagation: ChannelPropagation, call: Call) -> None:
    """Write into a part of a tensor, whose channels are then coupled with those written."""
    written = call.index_args[2]
    part = _part(propagation, call) if isinstance(call.index_args[0], Tensor) else "it is no tensor"
    if isinstance(part, str):
        propagation.freeze(call, part)
    elif isinstance(written, Tensor):
        source, _, value = call.node.args
        join_pair(propagation, call, (part, source), (written, value))
        if bool(((part < 0) & (written.expand(part.shape) >= 0)).any()):
            propagation.channels.freeze(written, "it is written over a constant")


def _part(propagation: ChannelPropagation, call: Call) -> Tensor | str:
    """Return the index tensor of an indexed part, whose bounds may count channels, or why there is none."""
    source, key = call.index_args[:2]
    places = key if isinstance(key, tuple) else (key,)
    if not all(place in (Ellipsis, None) or type(place) in (int, slice) for place in places):
        return "it is indexed in a way that is not understood"
    dim = 0
    for position, place in enumerate(places):
        if place is None:
            continue
        if place is Ellipsis:
            dim = source.dim() - sum(other is not None for other in places[position + 1 :])
            continue
        path = ("args", 1, position) if isinstance(call.node.args[1], tuple) else ("args", 1)
        if dim in varying(source) and place != slice(None):
            if isinstance(place, int) or place.step not in (None, 1):
                return "its channels are picked by number or step"
            _bounds(propagation, call, profile(source, dim), place, path)
        dim += 1
    return source[key]


def _bounds(
    propagation: ChannelPropagation, call: Call, ids: Tensor, place: slice, path: tuple[str | int, ...]
) -> None:
    """Record the bounds of a slice, which count the channels before them."""
    start, stop, _ = place.indices(len(ids))
    if place.start is not None:
        propagation.add_constant(call.node, (*path, "start"), ids[:start])
    if place.stop is not None:
        propagation.add_constant(call.node, (*path, "stop"), ids[:stop])


@function_rule(F.pad)
def pad(propagation: ChannelPropagation, call: Call) -> Any:
    """Add border positions (of the channel itself) or whole channels (fresh ones, coupled where added)."""
    index, amounts = call.index_args[0], call.argument(1, "pad")
    last = index.dim() - 1
    padded = {last - place // 2 for place, amount in enumerate(amounts) if amount}
    plain = call.argument(2, "mode", "constant") == "constant" and min(amounts, default=0) >= 0
    if not plain and padded & set(varying(index)):
        return propagation.freeze(call, f"{call.name} repeats or removes channels")
    for i, dim in enumerate(range(index.dim() - 1, index.dim() - 1 - len(amounts) // 2, -1)):
        before, after = amounts[2 * i : 2 * i + 2]
        if dim not in varying(index):
            index = index.narrow(dim, 0, 1).expand(_grown(index, dim, before + after))
            continue
        lead, tail = propagation.channels.create(before), propagation.channels.create(after)
        ids = torch.cat([lead, profile(propagation.channels.separate(index), dim), tail])
        shape = _grown(index, dim, before + after)
        index = ids.view([-1 if d == dim else 1 for d in range(index.dim())]).expand(shape)
        where = ("args", 1) if len(call.args) > 1 else ("kwargs", "pad")
        for place, fresh in ((2 * i, lead), (2 * i + 1, tail)):
            propagation.add_constant(call.node, (*where, place), fresh)
    return index


def _grown(index: Tensor, dim: int, amount: int) -> Sequence[int]:
    return [size + amount * (d == dim) for d, size in enumerate(index.shape)]


def _on_index(call: Call) -> Any:
    """Run the operator itself on the index tensors."""
    args, kwargs = pytree.tree_map_only(Tensor, torch.Tensor.contiguous, (call.index_args, call.index_kwargs))
    if call.module is not None:
        return call.module(*args, **kwargs)
    if call.node.op == "call_method":
        return getattr(args[0], str(call.node.target))(*args[1:], **kwargs)
    return call.node.target(*args, **kwargs)  # type: ignore[operator]
