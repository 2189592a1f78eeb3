"""Fit gates without gradients, on the calibration inputs of the dense network, before the cut."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from prunegym.pruning.calibration.statistics import Calibration
from prunegym.pruning.graph import ChannelGroup, Member
from prunegym.pruning.runtime.gates import GatedInput, GateSite, Places, RuntimeGate, RuntimeGates, with_fills
from prunegym.pruning.surgery.cutting import TRANSPOSED, AxisCut, KeptUnits, axis_size

RIDGE = 1e-1  # of the mean variance of the pooled input


def gate_site(model: nn.Module, group: ChannelGroup, executed: int) -> GateSite:
    """Return the site of a group's gate in a network that is not cut."""
    writer = group.layers[0]
    return GateSite(
        group=group.name,
        writer=writer,
        inputs=axis_size(model, writer, "in"),
        units=group.units,
        executed=executed,
        outputs=_places(model, (*group.writers, *group.carriers), "out"),
        readers=_places(model, group.readers, "in"),
    )


def _places(model: nn.Module, members: Iterable[Member], axis: str) -> Places:
    places = {}
    for member in members:
        units = [-1] * axis_size(model, member.owner, axis)
        for unit, channels in enumerate(member.channels):
            for channel in channels:
                units[channel] = unit
        places[member.owner] = tuple(units)
    return places


@torch.no_grad()
def fit_gates_(
    model: nn.Module,
    gates: RuntimeGates,
    kept: KeptUnits,
    cuts: Collection[AxisCut],
    calibration: Calibration,
) -> None:
    """Fit the scores of gates, and the fills that skipped channels count as, in place.

    A score predicts a unit's importance for an image: over its readers, the sum of the root mean square of
    its channels times the norm of the reader's weights on them, with what compensation has added to these. A
    fill is the mean of a channel over the images for which it is skipped. Units that the cut removes never
    run, and inputs that it removes do not count.

    Args:
        model: the compensated network, not yet cut.
        gates: the gates attached to it.
        kept: group -> kept units.
        cuts: the kept positions.
        calibration: statistics of the dense network.
    """
    readers = gates.by_reader()
    for site in gates.sites:
        gate = gates.gate_for(site.group)
        if site.group in kept:
            gate.bias.fill_(-torch.inf)  # the removed units never run
            gate.bias[kept[site.group]] = 0.0
        gated = [each for name in site.readers for each in readers[name] if each.gate is gate]
        gate.pooled = seen_by_gate(site.writer, readers.get(site.writer, ()), cuts, calibration)
        importance = torch.stack([_importance(model, each, calibration) for each in gated]).sum(0)
        choose_by_(gate, importance)
        for each in gated:
            if each.reader in calibration.moments:
                fit_fill_(each, calibration.means[each.reader])


def seen_by_gate(
    writer: str, gated: Iterable[GatedInput], cuts: Iterable[AxisCut], calibration: Calibration
) -> Tensor:
    """Return the input of a writer's gate on the calibration images, [images, cin].

    Args:
        writer: the name of the layer.
        gated: its inputs that the gates before it choose among; those skipped count as their fills.
        cuts: the kept positions; inputs that are cut count as 0.
        calibration: statistics of the dense network.
    """
    pooled = with_fills(calibration.pooled[writer], gated)
    for cut in cuts:
        if (cut.owner, cut.axis) == (writer, "in"):
            stays = torch.tensor(cut.kept, device=pooled.device)
            return torch.zeros_like(pooled).index_copy(1, stays, pooled[:, stays])
    return pooled


@torch.no_grad()
def choose_by_(gate: RuntimeGate, importance: Tensor) -> None:
    """Fit a gate's scores to the importance of units for the images in flight, and choose anew.

    Args:
        gate: the gate, whose `pooled` holds the images' inputs. Units that it never runs stay so.
        importance: [images, units], float64; larger means that the unit should rather run.
    """
    assert gate.pooled is not None  # the writer has run
    # in units of their spread, which changes no choice: a step of training then means the same in any gate
    importance = importance / importance.std().clamp_min(torch.finfo(importance.dtype).tiny)
    weight, bias = _ridge(gate.pooled.double(), importance)
    barred = gate.bias == -torch.inf
    gate.weight.copy_(weight.masked_fill(barred[:, None], 0))
    gate.bias.copy_(bias.masked_fill(barred, -torch.inf))
    gate.choose(gate.pooled)


@torch.no_grad()
def fit_fill_(gated: GatedInput, means: Tensor) -> None:
    """Set the fill of skipped channels to their mean over the images for which they are skipped.

    Args:
        gated: the channels; their gate's `mask` is that of the images in flight.
        means: means over positions of the reader's input, [images, cin].
    """
    skipped = 1 - gated.mask()[:, gated.positions]
    total = (means[:, gated.positions] * skipped).sum(0)
    gated.fill.copy_(total / skipped.sum(0).clamp_min(1))


def _importance(model: nn.Module, gated: GatedInput, calibration: Calibration) -> Tensor:
    """Return the strength of each unit's input to one reader: [images, units], float64."""
    strength = calibration.magnitudes[gated.reader].double() * _input_norms(model.get_submodule(gated.reader))
    zeros = strength.new_zeros(len(strength), len(gated.gate.bias))
    return zeros.index_add(1, gated.units.to(strength.device), strength[:, gated.positions])


def _input_norms(layer: Any) -> Tensor:
    """Return the norm of a reader's weights on each of its input channels: [cin], float64."""
    weight = layer.weight.detach().double()
    if isinstance(layer, TRANSPOSED):
        return weight.flatten(1).norm(dim=1)
    # [groups, cout / groups, cin / groups, ...]
    by_group = weight.unflatten(0, (getattr(layer, "groups", 1), -1))
    return by_group.unsqueeze(-1).flatten(3).square().sum((1, 3)).sqrt().flatten()


def _ridge(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight [targets, inputs] and bias [targets] of a linear fit with a penalty on the weight."""
    x, y = inputs - inputs.mean(0), targets - targets.mean(0)
    gram = x.T @ x
    penalty = RIDGE * gram.diagonal().mean() + 1e-12
    damped = gram + penalty * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weight = torch.linalg.solve(damped, x.T @ y).T
    return weight, targets.mean(0) - weight @ inputs.mean(0)


@torch.no_grad()
def cut_gates(gates: RuntimeGates, kept: KeptUnits, cuts: Collection[AxisCut]) -> RuntimeGates:
    """Return the gates of the network after the cut; they are attached to nothing."""
    kept_positions: dict[tuple[str, str], Sequence[int]] = {(cut.owner, cut.axis): cut.kept for cut in cuts}
    sites = [_cut_site(site, kept.get(site.group), kept_positions) for site in gates.sites]
    smaller = RuntimeGates(tuple(sites))
    for site in gates.sites:
        units = kept.get(site.group, torch.arange(site.units))
        inputs = torch.tensor(kept_positions.get((site.writer, "in"), tuple(range(site.inputs))))
        old, new = gates.gate_for(site.group), smaller.gate_for(site.group)
        new.weight.copy_(old.weight[units][:, inputs])
        new.bias.copy_(old.bias[units])
    before, after = gates.by_reader(), smaller.by_reader()
    for name, gated in after.items():
        stays = torch.tensor(kept_positions.get((name, "in"), tuple(range(before[name][0].size))))
        for old_input, new_input in zip(before[name], gated, strict=True):
            fill = torch.zeros(old_input.size).index_copy(0, old_input.positions, old_input.fill.cpu())
            new_input.fill.copy_(fill[stays][new_input.positions])
    return smaller


def _cut_site(
    site: GateSite, kept: Tensor | None, positions: Mapping[tuple[str, str], Sequence[int]]
) -> GateSite:
    units = range(site.units) if kept is None else kept.tolist()
    rank = {unit: position for position, unit in enumerate(units)}

    def kept_places(places: Places, axis: str) -> Places:
        return {
            name: tuple(rank.get(dense[at], -1) for at in positions.get((name, axis), range(len(dense))))
            for name, dense in places.items()
        }

    return replace(
        site,
        inputs=len(positions.get((site.writer, "in"), range(site.inputs))),
        units=len(rank),
        outputs=kept_places(site.outputs, "out"),
        readers=kept_places(site.readers, "in"),
    )
