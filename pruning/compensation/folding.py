"""Folding: units are clustered, and each cluster becomes one unit (Wang et al. 2025, "Model Folding")."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunegym.pruning.compensation.records import COMPENSATIONS, Compensation, PlannedCut
from prunegym.pruning.compensation.unit_weights import (
    channel_view,
    output_affine,
    pruned_groups,
    select_channels,
    unit_places,
)
from prunegym.pruning.criteria import writer_rows
from prunegym.pruning.graph import ChannelGraph, ChannelGroup, Member
from prunegym.pruning.surgery.cutting import bare_tensor

RESTARTS = 10  # of k-means, as in the authors' code; the best clusters count
MAX_ROUNDS = 100


@torch.no_grad()
def _folding_(model: nn.Module, planned: PlannedCut) -> None:
    """Fold every pruned group to as many clusters as it keeps units; each takes the place of one of them.

    All that holds a value per unit (writers, BatchNorms, depthwise convolutions, bare parameters) takes the
    cluster's mean, and readers its sum.
    """
    for group, kept, _ in pruned_groups(planned):
        features = unit_features(planned.dense, planned.graph, group)
        members = functional.one_hot(k_means(features, len(kept)), len(kept)).double().T  # [kept, units]
        means = members / members.sum(1, keepdim=True)
        for member in (*group.writers, *group.carriers):
            layer = model.get_submodule(member.owner)
            for name in ("weight", "bias", "running_mean", "running_var"):
                if getattr(layer, name, None) is not None:
                    _combine_(channel_view(getattr(layer, name), layer, "out"), member, means, kept)
        for member in group.parameters:
            _combine_(bare_tensor(model, member.owner).movedim(member.axis, 0)[None], member, means, kept)
        for member in group.readers:
            reader: Any = model.get_submodule(member.owner)
            _combine_(channel_view(reader.weight, reader, "in"), member, members, kept)
        for member in group.writers:
            _repair_variance_(model, planned, member, members, kept)


COMPENSATIONS.register("folding")(Compensation(_folding_, shifts_bias=False, statistics=()))


def unit_features(model: nn.Module, graph: ChannelGraph, group: ChannelGroup) -> Tensor:
    """Return the features to cluster units by: [rows / sigma | gamma | readers' columns], [units, ...]."""
    every = torch.arange(group.units)
    features = []
    for writer in group.writers:
        affine, places = output_affine(model, graph.layers[writer.owner]), unit_places(writer, every)
        rows = writer_rows(model, writer.owner) / affine.sigma[:, None]
        features += [rows[places].flatten(1), affine.gamma[places]]
    for reader in group.readers:
        layer: Any = model.get_submodule(reader.owner)
        columns = channel_view(layer.weight.detach().double().cpu(), layer, "in")
        features.append(columns[select_channels(columns, unit_places(reader, every))].flatten(1))
    return torch.cat(features, dim=1)


def _combine_(view: Tensor, member: Member, combination: Tensor, kept: Tensor) -> None:
    """Replace the kept units by combinations of all units, [kept, units]."""
    everything = view[select_channels(view, unit_places(member, torch.arange(combination.size(1))))]
    combined = torch.tensordot(combination.to(everything), everything, dims=1)
    view[select_channels(view, unit_places(member, kept))] = combined


def _repair_variance_(
    model: nn.Module, planned: PlannedCut, writer: Member, members: Tensor, kept: Tensor
) -> None:
    """Scale the writer's BatchNorm up to restore the variance that averaging took away (Fold-AR)."""
    name = planned.graph.layers[writer.owner].batch_norm
    batch_norm: Any = model.get_submodule(name) if name else None
    if batch_norm is not None and batch_norm.affine:
        places = torch.tensor(writer.channels)
        gains = variance_gains(writer_rows(planned.dense, writer.owner)[places], members)
        batch_norm.weight[places[kept]] *= gains.to(batch_norm.weight)


def variance_gains(rows: Tensor, members: Tensor) -> Tensor:
    """Return N / sqrt(N + (N^2 - N) E) for clusters of N rows, E the mean of their pairs' cosines.

    The root is the length of the sum of the rows at length 1. It is taken to be at least that of orthogonal
    rows: opposite ones would ask for an infinite gain.

    Args:
        rows: [units, channels per unit, row length].
        members: [clusters, units], 1 where a unit belongs to a cluster.

    Returns:
        [clusters, channels per unit].
    """
    sizes = members.sum(1)[:, None]
    total = torch.tensordot(members, functional.normalize(rows, dim=2), dims=1).norm(dim=2)
    return sizes / torch.maximum(total, sizes.sqrt())


def k_means(points: Tensor, count: int) -> Tensor:
    """Return the cluster of each point, [points], of `count` clusters, none of which is empty.

    Args:
        points: [points, dimensions], at least `count` of them.
        count: the number of clusters.
    """
    generator = torch.Generator().manual_seed(0)
    if points.size(1) > len(points):
        points = torch.linalg.qr(points.T, mode="r").R.T  # the same distances in fewer dimensions
    clusterings = [_lloyd(points, _spread_seeds(points, count, generator)) for _ in range(RESTARTS)]
    costs = [float((points - _means(points, labels, count)[labels]).square().sum()) for labels in clusterings]
    return clusterings[costs.index(min(costs))]


def _spread_seeds(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw each first centre with a chance that grows with its distance from earlier ones (k-means++)."""
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    nearest = torch.full((len(points),), torch.inf, dtype=points.dtype)
    while len(chosen) < count:
        nearest = torch.minimum(nearest, (points - points[chosen[-1]]).square().sum(1))
        # where only copies of chosen points are left any will do
        chances = nearest if nearest.any() else torch.ones_like(nearest)
        chosen.append(int(torch.multinomial(chances, 1, generator=generator)))
    return points[chosen]


def _lloyd(points: Tensor, centres: Tensor) -> Tensor:
    labels = torch.full((len(points),), -1)
    for _ in range(MAX_ROUNDS):
        before, distances = labels, torch.cdist(points, centres)
        labels = distances.argmin(1)
        sizes = labels.bincount(minlength=len(centres))
        for cluster in (sizes == 0).nonzero()[:, 0]:  # takes the farthest point of those that are not alone
            own = distances.gather(1, labels[:, None])[:, 0]
            labels[torch.where(sizes[labels] > 1, own, -1.0).argmax()] = cluster
            sizes = labels.bincount(minlength=len(centres))
        if torch.equal(labels, before):
            break
        centres = _means(points, labels, len(centres))
    return labels


def _means(points: Tensor, labels: Tensor, count: int) -> Tensor:
    members = functional.one_hot(labels, count).to(points)
    return (members / members.sum(0)).T @ points
