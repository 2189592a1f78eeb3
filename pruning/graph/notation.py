"""Rules for operators in index notation, whose patterns name the axes: those of einops, and einsum."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prunegym.pruning.graph.channels import profile, varying
from prunegym.pruning.graph.propagation import Call, ChannelPropagation
from prunegym.pruning.graph.rules import function_rule, join_pair, layer_rule

Axes = list[list[str]]  # the names of the axes that each dimension is made of


@layer_rule("einops.layers.torch.Rearrange", "einops.layers.torch.Reduce")
@function_rule("einops.einops.rearrange", "einops.einops.reduce", "einops.einops.repeat")
def einops(propagation: ChannelPropagation, call: Call) -> Any:
    """Split, move, reduce, repeat and join axes by their names."""
    index, module = call.index_args[0], call.module
    if not isinstance(index, Tensor):
        return propagation.freeze(call, f"{call.name} takes several tensors")
    lengths: Mapping[str, Any] = call.kwargs if module is None else module.axes_lengths  # type: ignore[assignment]
    pattern: Any = call.argument(1, "pattern") if module is None else module.pattern
    before, after = (_axes(side, index.dim()) for side in str(pattern).split("->"))
    sizes = _sizes(before, index.shape, lengths)
    names = [name for dim in before for name in dim]
    index = index.reshape([sizes[name] for name in names])
    # an axis whose length is written down cannot change by itself
    computed = [place for place, name in enumerate(names) if name not in lengths]
    index = propagation.channels.separate(index, preferred=computed)
    wanted = [name for dim in after for name in dim]
    for dim in varying(index):
        name, ids = names[dim], profile(index, dim)
        if name not in wanted:
            return propagation.freeze(call, f"{call.name} reduces over channels")
        if name in lengths and (module is not None or not isinstance(call.node.kwargs.get(name), int)):
            return propagation.freeze(call, f"{call.name} writes down how many channels there are")
        if name in lengths:
            propagation.add_constant(call.node, ("kwargs", name), ids)
    for dim in reversed(range(len(names))):
        if names[dim] not in wanted:
            index = index.select(dim, 0)
    kept = [name for name in names if name in wanted]
    fresh = [name for name in wanted if name not in kept]
    index = index.reshape([*index.shape, *[1] * len(fresh)])
    index = index.expand([*index.shape[: len(kept)], *(int(lengths.get(name, 1)) for name in fresh)])
    index = index.permute([[*kept, *fresh].index(name) for name in wanted])
    return propagation.channels.separate(index.reshape(call.value.shape))


def _axes(side: str, dims: int) -> Axes:
    """Return the axes of each dimension on one side of a pattern; those of an ellipsis are numbered."""
    words = re.findall(r"\([^)]*\)|\S+", side)
    n_others = dims - sum(word != "..." for word in words)
    axes: Axes = []
    for word in words:
        if word == "...":
            axes += [[f"...{place}"] for place in range(n_others)]
        else:
            axes.append([name for name in word.strip("()").split() if name != "1"])
    return axes


def _sizes(axes: Axes, shape: Sequence[int], lengths: Mapping[str, Any]) -> dict[str, int]:
    """Return the length of each axis, of which one in each dimension need not be written down."""
    sizes = {name: int(lengths[name]) for dim in axes for name in dim if name in lengths}
    for dim, size in zip(axes, shape, strict=True):
        unknown = [name for name in dim if name not in sizes]
        sizes |= dict.fromkeys(unknown, size // math.prod(sizes[name] for name in dim if name in sizes))
    return sizes


@function_rule(torch.einsum)
def einsum(propagation: ChannelPropagation, call: Call) -> Any:
    """Multiply entry by entry and sum along the axes that the result lacks."""
    equation, operands = call.index_args[0], list(call.index_args[1:])
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = list(operands[0])
    equation = equation.replace(" ", "") if isinstance(equation, str) else ""
    terms, arrow, wanted = equation.partition("->")
    if not arrow or "." in equation or any(len(set(term)) < len(term) for term in terms.split(",")):
        return propagation.freeze(call, "einsum is written in a way that is not understood")
    aligned = []
    for index, letters in zip(operands, terms.split(","), strict=True):
        index = propagation.channels.separate(index)
        if any(letters[dim] not in wanted for dim in varying(index)):
            return propagation.freeze(call, "einsum sums over channels")
        for dim in reversed(range(len(letters))):
            if letters[dim] not in wanted:
                index = index.select(dim, 0)
        kept = [letter for letter in letters if letter in wanted]
        index = index.permute([kept.index(letter) for letter in wanted if letter in kept])
        for dim, letter in enumerate(wanted):
            index = index if letter in kept else index.unsqueeze(dim)
        aligned.append(index)
    result = aligned[0]
    for index in aligned[1:]:
        result = join_pair(propagation, call, (result, call.node), (index, call.node))
    return propagation.channels.separate(result.expand(call.value.shape))
