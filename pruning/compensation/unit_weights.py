"""Units as weights: those that write a unit and those that read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunegym.pruning.compensation.records import PlannedCut
from prunegym.pruning.criteria import writer_rows
from prunegym.pruning.graph import ChannelGraph, ChannelGroup, LayerShape, Member
from prunegym.pruning.surgery.cutting import TRANSPOSED


@dataclass(frozen=True)
class OutputAffine:
    """A layer's output gamma (x - mean) / sigma + beta by its weighted sums x; each [channels], float64."""

    gamma: Tensor
    beta: Tensor
    mean: Tensor
    variance: Tensor  # as stored, without epsilon: the published codes take it for sigma
    sigma: Tensor

    @property
    def scale(self) -> Tensor:
        """Factor of a weighted sum."""
        return self.gamma / self.sigma

    @property
    def offset(self) -> Tensor:
        """Output for a weighted sum of 0."""
        return self.beta - self.scale * self.mean

    def select(self, index: Tensor) -> OutputAffine:
        """Return the same for some of the channels, in the shape of `index`."""
        return OutputAffine(*(getattr(self, field.name)[index] for field in fields(self)))


AffineShares = Callable[[Tensor, OutputAffine, Tensor, Tensor], Tensor]
BiasShares = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def output_affine(model: nn.Module, layer: LayerShape) -> OutputAffine:
    """Return a layer's bias and the BatchNorm that alone follows it, if one does, as one affine map."""
    zero = torch.zeros(layer.cout, dtype=torch.float64)
    bias = _values(model.get_submodule(layer.name), "bias", zero)
    if layer.batch_norm is None:
        return OutputAffine(gamma=zero + 1, beta=bias, mean=zero, variance=zero + 1, sigma=zero + 1)
    batch_norm: Any = model.get_submodule(layer.batch_norm)
    variance = _values(batch_norm, "running_var", zero)
    return OutputAffine(
        gamma=_values(batch_norm, "weight", zero + 1),
        beta=_values(batch_norm, "bias", zero),
        mean=_values(batch_norm, "running_mean", zero) - bias,
        variance=variance,
        sigma=(variance + batch_norm.eps).sqrt(),
    )


def _values(module: nn.Module, name: str, absent: Tensor) -> Tensor:
    tensor = getattr(module, name)
    return absent if tensor is None else tensor.detach().double().cpu()


def folded_rows(model: nn.Module, graph: ChannelGraph, group: ChannelGroup) -> tuple[Tensor, Tensor]:
    """Return the weights that write each unit, BatchNorms folded in, side by side for all writers.

    The channels of a residual stream are coupled, so two units are alike only if they are alike in every
    layer that writes them.

    Returns:
        Rows, [units, summed row lengths], and offsets, [units, channels per unit of all writers], float64.
    """
    rows, offsets = [], []
    for writer in group.writers:
        affine, places = output_affine(model, graph.layers[writer.owner]), torch.tensor(writer.channels)
        folded = writer_rows(model, writer.owner) * affine.scale[:, None]
        rows.append(folded[places].flatten(1))
        offsets.append(affine.offset[places])
    return torch.cat(rows, dim=1), torch.cat(offsets, dim=1)


@dataclass(frozen=True)
class SingleWriterGroup:
    """A group as the publications know them: one layer writes it, and its units are single channels."""

    group: ChannelGroup
    rows: Tensor  # [units, row length], float64, BatchNorm not folded in
    affine: OutputAffine  # of [units]
    has_batch_norm: bool
    kept: Tensor
    removed: Tensor


def single_writer_groups(planned: PlannedCut) -> Iterator[SingleWriterGroup]:
    """Yield the pruned groups that the publications treat, as they were in the dense network.

    Channels that are constant are among neither the kept nor the removed ones: the published formulas divide
    by their weights, variances and factors.
    """
    for group, kept, removed in pruned_groups(planned):
        writer = group.writers[0]
        if len(group.writers) > 1 or len(writer.channels[0]) > 1:
            continue
        places = torch.tensor(writer.channels)[:, 0]
        layer = planned.graph.layers[writer.owner]
        rows = writer_rows(planned.dense, writer.owner)[places]
        affine = output_affine(planned.dense, layer).select(places)
        varies = (rows.norm(dim=1) > 0) & (affine.gamma != 0) & (affine.variance > 0)
        kept, removed = kept[varies[kept]], removed[varies[removed]]
        if len(kept) and len(removed):
            yield SingleWriterGroup(group, rows, affine, layer.batch_norm is not None, kept, removed)


def redistribute_single_writer_groups_(
    model: nn.Module, planned: PlannedCut, *, by_batch_norm: AffineShares, by_bias: BiasShares
) -> None:
    """Redistribute removed units of single-writer groups over kept ones, by a rule for each kind of layer.

    Args:
        model: the network, changed in place.
        planned: the planned cut.
        by_batch_norm: (rows, affine, kept, removed) -> shares [len(removed), len(kept)].
        by_bias: (rows, bias, kept, removed) -> likewise, for a layer without BatchNorm.
    """
    for single in single_writer_groups(planned):
        if single.has_batch_norm:
            shares = by_batch_norm(single.rows, single.affine, single.kept, single.removed)
        else:
            shares = by_bias(single.rows, single.affine.beta, single.kept, single.removed)
        redistribute_(model, single.group, shares, single.kept, single.removed)


def pruned_groups(planned: PlannedCut) -> Iterator[tuple[ChannelGroup, Tensor, Tensor]]:
    """Yield each group that is pruned, with the numbers of its kept units and of its removed ones."""
    for group in planned.graph.groups:
        if group.name in planned.kept:
            kept = planned.kept[group.name].cpu()
            is_kept = torch.zeros(group.units, dtype=torch.bool).index_fill_(0, kept, True)
            yield group, kept, (~is_kept).nonzero()[:, 0]


def channel_view(tensor: Tensor, layer: nn.Module, axis: Literal["in", "out"]) -> Tensor:
    """Return a view of a layer's tensor by its channels: [blocks, channels per block, ...].

    The blocks are convolution groups; channel c is at [c // channels per block, c % channels per block].
    """
    if tensor.dim() == 1:
        return tensor[None]
    blocks = tensor.unflatten(0, (getattr(layer, "groups", 1), -1))
    return blocks.transpose(1, 2) if (axis == "in") != isinstance(layer, TRANSPOSED) else blocks


def select_channels(view: Tensor, channels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index of channels in a channel view."""
    channels = channels.to(view.device)
    return channels // view.size(1), channels % view.size(1)


def unit_places(member: Member, units: Tensor) -> Tensor:
    """Return the positions of some units along a member's axis: [units, channels per unit]."""
    return torch.tensor(member.channels)[units]


@torch.no_grad()
def redistribute_(
    model: nn.Module, group: ChannelGroup, shares: Tensor, kept: Tensor, removed: Tensor
) -> None:
    """Change the readers' weights so that each removed unit is replaced by its shares of the kept ones.

    Args:
        model: the network; the columns of the kept units in its readers' weights are changed in place.
        group: the pruned group.
        shares: [len(removed), len(kept)]: unit `removed[r]` is taken for the sum of `shares[r, k]` times
            `kept[k]`.
        kept: numbers of the kept units.
        removed: numbers of the removed units.
    """
    for reader in group.readers:
        layer: Any = model.get_submodule(reader.owner)
        columns = channel_view(layer.weight, layer, "in")
        weights = columns[select_channels(columns, unit_places(reader, removed))]
        columns[select_channels(columns, unit_places(reader, kept))] += torch.tensordot(
            shares.T.to(weights), weights, dims=1
        )
