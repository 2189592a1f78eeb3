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
from prunegym.pruning.graph.rules import function_rule, layer_rule


@layer_rule(nn.Flatten, nn.PixelShuffle, nn.PixelUnshuffle)
@function_rule(
    torch.flatten, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze, torch.cat, torch.concat,
    torch.stack, torch.flip, torch.unbind, F.pixel_shuffle, F.pixel_unshuffle,
    "flatten", "permute", "transpose", "t", "squeeze", "unsqueeze", "flip", "unbind", "expand_as", "repeat",
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
    """Take an element of a sequence, or a slice of a tensor."""
    source, key = call.index_args
    if not isinstance(source, Tensor):
        return source[key]
    places = key if isinstance(key, tuple) else (key,)
    literal = all(place is Ellipsis or isinstance(place, (int, slice)) for place in places)
    if not literal:
        return propagation.freeze(call, "it is indexed in a way that is not understood")
    if Ellipsis in places:
        at = places.index(Ellipsis)
        fill = (slice(None),) * (source.dim() - len(places) + 1)
        places = places[:at] + fill + places[at + 1 :]
        if any(dim >= at for dim in varying(source) if places[dim] != slice(None)):
            return propagation.freeze(call, "its channels are sliced behind an ellipsis")
    for dim in varying(source):
        if (
            dim < len(places)
            and places[dim] != slice(None)
            and not _slice_constants(propagation, call, dim, places[dim])
        ):
            return propagation.freeze(call, "its channels are picked by number or step")
    return source[key]


def _slice_constants(propagation: ChannelPropagation, call: Call, dim: int, place: int | slice) -> bool:
    if isinstance(place, int) or place.step not in (None, 1):
        return False
    ids = profile(call.index_args[0], dim)
    start, stop, _ = place.indices(len(ids))
    path: tuple[str | int, ...] = ("args", 1, dim) if isinstance(call.node.args[1], tuple) else ("args", 1)
    if place.start is not None:
        propagation.add_constant(call.node, (*path, "start"), ids[:start])
    if place.stop is not None:
        propagation.add_constant(call.node, (*path, "stop"), ids[:stop])
    return True


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
