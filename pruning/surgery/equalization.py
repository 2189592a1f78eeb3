"""BatchNorm fusion and assumption-free cross-layer equalization (Horton et al. 2022), on a working copy."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunegym.pruning.graph import ChannelGraph, Member
from prunegym.pruning.surgery.cutting import TRANSPOSED

ROUNDS = 100
TOLERANCE = 1e-4  # a round that moves no scale by more than this share is the last


@dataclass(frozen=True)
class Equalization:
    """A working copy with fused BatchNorms in which producers and consumers of a channel have equal ranges.

    A layer with vectors computes the same as in the dense network by v_out * (W (v_in * x) + b), where W and
    b are those of `model`; without the vectors `model` computes something else. Each side undoes its own
    scale, so nothing is assumed of what lies between: activations, joins, and depthwise convolutions, which
    keep their weights and have no vectors.
    """

    model: nn.Module
    v_in: Mapping[str, Tensor]  # layer -> [cin], float64
    v_out: Mapping[str, Tensor]  # layer -> [cout], float64


@torch.no_grad()
def fuse_batch_norms(model: nn.Module, graph: ChannelGraph) -> nn.Module:
    """Return a copy in evaluation mode with every BatchNorm that alone follows a layer folded into it.

    In the place of such a BatchNorm stands an Identity; the others stay.
    """
    model = copy.deepcopy(model).eval()
    for layer in graph.layers.values():
        module: Any = model.get_submodule(layer.name)
        # a layer with hooks, such as weight_norm's, computes its weight anew at every call
        if layer.batch_norm is not None and not module._forward_pre_hooks:
            scale, shift = batch_norm_line(model.get_submodule(layer.batch_norm))
            _rescale_(module, rows=scale)
            bias = shift if module.bias is None else module.bias + shift
            module.bias = nn.Parameter(bias.to(module.weight))
            replace_module_(model, layer.batch_norm, nn.Identity())
    return model


def replace_module_(model: nn.Module, name: str, new: nn.Module) -> None:
    """Replace a module under all of its names: `forward` may use any of them."""
    old = model.get_submodule(name)
    for other, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            model.set_submodule(other, new)


def batch_norm_line(batch_norm: Any) -> tuple[Tensor, Tensor]:
    """Return the scale and shift, each [channels], float64, of a BatchNorm in evaluation mode."""
    scale = (batch_norm.running_var.double() + batch_norm.eps).rsqrt()
    if batch_norm.affine:
        scale = scale * batch_norm.weight.detach()
    shift = -batch_norm.running_mean * scale
    return scale, shift + batch_norm.bias.detach() if batch_norm.affine else shift


@torch.no_grad()
def equalize(model: nn.Module, graph: ChannelGraph) -> Equalization:
    """Fuse the BatchNorms of a copy, then give every channel's producers and consumers equal ranges.

    One scale per unit of each group, frozen groups too: s = sqrt(r1 / r2), where r2 is the largest weight of
    all that write the unit and r1 that of all that read it; 1 where either is zero. Repeated over the network
    until the scales stand still.

    Args:
        model: the dense network; it is not changed.
        graph: the network's groups.
    """
    model = fuse_batch_norms(model, graph)
    members = (member for group in graph.groups for member in (*group.writers, *group.readers))
    names = dict.fromkeys(member.owner for member in members)
    layers = {name: _Ranges(model.get_submodule(name)) for name in names}
    for _ in range(ROUNDS):
        if _balance_(graph, layers) < TOLERANCE:
            break
    for name, layer in layers.items():
        _rescale_(model.get_submodule(name), rows=1 / layer.v_out, columns=1 / layer.v_in)
    return Equalization(
        model,
        v_in={name: layer.v_in for name, layer in layers.items()},
        v_out={name: layer.v_out for name, layer in layers.items()},
    )


@torch.no_grad()
def folded(equalization: Equalization) -> nn.Module:
    """Return a copy with the vectors folded back into its weights, which computes what the dense one does."""
    model = copy.deepcopy(equalization.model)
    for name, v_in in equalization.v_in.items():
        _rescale_(model.get_submodule(name), rows=equalization.v_out[name], columns=v_in)
    return model


class _Ranges:
    """The largest weights of a layer, and its two vectors as found so far."""

    def __init__(self, module: nn.Module) -> None:
        blocks = _blocks(module, module.weight.detach().double())  # type: ignore[operator]
        self._largest = blocks[..., None].abs().flatten(3).amax(3)  # [conv groups, outputs, inputs of each]
        groups, outputs, inputs = self._largest.shape
        self.v_out, self.v_in = (
            torch.ones(groups * count, dtype=torch.float64, device=blocks.device)
            for count in (outputs, inputs)
        )

    def output_ranges(self) -> Tensor:
        """Return the largest weight of each row, [cout]."""
        groups = len(self._largest)
        return (self._largest / self.v_in.view(groups, 1, -1)).amax(2).flatten() / self.v_out

    def input_ranges(self) -> Tensor:
        """Return the largest weight of each column, [cin]."""
        groups = len(self._largest)
        return (self._largest / self.v_out.view(groups, -1, 1)).amax(1).flatten() / self.v_in


def _balance_(graph: ChannelGraph, layers: Mapping[str, _Ranges]) -> float:
    """Equalize every group once; return the largest change, as a share of a scale."""
    change = 0.0
    for group in graph.groups:
        if not group.readers:
            continue
        produced = _per_unit(
            group.writers, [layers[member.owner].output_ranges() for member in group.writers]
        )
        consumed = _per_unit(group.readers, [layers[member.owner].input_ranges() for member in group.readers])
        alive = (produced > 0) & (consumed > 0)
        scale = torch.where(alive, consumed / produced, 1.0).sqrt()
        for member in group.writers:
            layers[member.owner].v_out[torch.tensor(member.channels)] /= scale[:, None]
        for member in group.readers:
            layers[member.owner].v_in[torch.tensor(member.channels)] *= scale[:, None]
        change = max(change, float((scale - 1).abs().max()))
    return change


def _per_unit(members: Sequence[Member], ranges: Sequence[Tensor]) -> Tensor:
    """Return the largest range of each unit over all members, [units]."""
    pairs = zip(members, ranges, strict=True)
    return torch.stack([values[torch.tensor(member.channels)].amax(1) for member, values in pairs]).amax(0)


def _rescale_(module: Any, *, rows: Tensor, columns: Tensor | None = None) -> None:
    """Multiply the weight by one factor per output and one per input, and the bias by that per output."""
    weight = module.weight.detach().to(torch.float64, copy=True)
    blocks = _blocks(module, weight)
    groups, trailing = blocks.size(0), [1] * (blocks.dim() - 3)
    blocks *= rows.view(groups, -1, 1, *trailing)
    if columns is not None:
        blocks *= columns.view(groups, 1, -1, *trailing)
    dtype = module.weight.dtype
    module.weight = nn.Parameter(weight.to(dtype))  # a new one, for the old one may belong to two layers
    if module.bias is not None:
        module.bias = nn.Parameter((module.bias.detach() * rows).to(dtype))


def _blocks(module: Any, weight: Tensor) -> Tensor:
    """Return a view of a layer's weight, [conv groups, outputs of each, inputs of each, *kernel]."""
    blocks = weight.unflatten(0, (getattr(module, "groups", 1), -1))
    return blocks.transpose(1, 2) if isinstance(module, TRANSPOSED) else blocks
