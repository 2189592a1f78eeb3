"""Named groups of units, from the channel numbers that were coupled."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from prunegym.pruning.graph import layers, notation, reshaping  # noqa: F401  (file their rules)
from prunegym.pruning.graph.propagation import ChannelPropagation, Slot, propagate
from prunegym.pruning.graph.records import ChannelGraph, ChannelGroup, Member
from prunegym.pruning.graph.rules import rule_for
from prunegym.pruning.graph.tracing import trace_program

Unit = dict[int, list[int]]  # slot number -> positions of the unit in it


def find_groups(model: nn.Module, input_shape: Sequence[int]) -> ChannelGraph:
    """Trace a network and find its groups of coupled channels (see docs/decisions.md, D5).

    Args:
        model: any module whose `forward` takes one batch of images; it is not changed.
        input_shape: shape of one image, (channels, height, width).

    Raises:
        UntraceableModelError: the network cannot be traced or does not run on such an image.
    """
    traced = trace_program(model, input_shape)
    propagation = propagate(traced, input_shape, rule_for)
    _freeze_shared_parameters(traced, propagation)
    return ChannelGraph(
        groups=_groups(propagation),
        layers=propagation.layers,
        constants={key: constant for key, constant in propagation.constants.items() if constant.size},
        program=copy.deepcopy(traced.graph),
        input_shape=tuple(input_shape),
        other_macs=max(
            0, propagation.counted_macs - sum(layer.macs for layer in propagation.layers.values())
        ),
    )


def _freeze_shared_parameters(traced: nn.Module, propagation: ChannelPropagation) -> None:
    owners = defaultdict(set)
    for name, parameter in traced.named_parameters(remove_duplicate=False):
        owners[id(parameter)].add(name.rpartition(".")[0])
    shared = set().union(*(names for names in owners.values() if len(names) > 1))
    for slot in propagation.slots.values():
        if slot.owner in shared:
            propagation.channels.freeze(slot.ids, f"{slot.owner} shares its weights with another layer")


def _groups(propagation: ChannelPropagation) -> tuple[ChannelGroup, ...]:
    slots = list(propagation.slots.values())
    alike: dict[tuple[tuple[int, int], ...], list[tuple[int, Unit]]] = defaultdict(list)
    for number, unit in _units(propagation, slots).items():
        writers = [slot for slot in unit if slots[slot].role == "writers"]
        if writers:
            # a group's units have the same number of channels in the same layers, so one price for each
            layers = sorted(slot for slot in unit if slots[slot].role != "constants")
            alike[tuple((slot, len(unit[slot])) for slot in layers)].append((number, unit))
    frozen = propagation.channels.frozen_reasons()
    groups = []
    for units in alike.values():
        reasons = {frozen.get(number) for number, _ in units}
        for reason in reasons:
            members = [unit for number, unit in units if frozen.get(number) == reason]
            groups.append(_group(propagation, slots, members, reason))
    return _named(groups, list(propagation.layers))


def _units(propagation: ChannelPropagation, slots: Sequence[Slot]) -> dict[int, Unit]:
    units: dict[int, Unit] = defaultdict(lambda: defaultdict(list))
    for index, slot in enumerate(slots):
        for position, channel in enumerate(propagation.channels.find(slot.ids).tolist()):
            if channel >= 0:
                units[channel][index].append(position)
    return units


def _group(
    propagation: ChannelPropagation, slots: Sequence[Slot], units: list[Unit], frozen: str | None
) -> ChannelGroup:
    members: dict[str, list[Member]] = defaultdict(list)
    for index in sorted(set().union(*units)):
        slot = slots[index]
        channels = tuple(tuple(unit.get(index, ())) for unit in units)
        members[slot.role].append(Member(slot.owner, channels, slot.axis))
    order = list(propagation.layers)
    writers = sorted(members.pop("writers"), key=lambda member: order.index(member.owner))
    group = ChannelGroup(
        name=writers[0].owner,
        units=len(units),
        writers=tuple(writers),
        carriers=tuple(members["carriers"]),
        readers=tuple(members["readers"]),
        parameters=tuple(members["parameters"]),
        constants=tuple(members["constants"]),
        frozen=frozen or ("it is a single unit" if len(units) == 1 else None),
    )
    return replace(group, ungated=_why_ungated(group, propagation))


def _why_ungated(group: ChannelGroup, propagation: ChannelPropagation) -> str | None:
    """Return why a gate cannot silence channels between one writer and its readers; None if it can."""
    if group.frozen is not None:
        return "it is frozen"
    if len(group.writers) > 1:
        return "several layers write these channels"
    if not group.readers:
        return "no layer reads these channels"
    shapes = [propagation.layers[member.owner] for member in (*group.writers, *group.readers)]
    if any(shape.calls > 1 for shape in shapes):
        return "a layer that writes or reads them is called more than once"
    if not all(shape.by_image for shape in shapes):
        return "a layer that writes or reads them sees the places of all images in one row"
    if group.constants or group.parameters:
        return "a size or a parameter outside of any layer counts these channels"
    return None


def _named(groups: list[ChannelGroup], order: list[str]) -> tuple[ChannelGroup, ...]:
    """Order by first writer, then by lowest channel; a writer's further groups get #1, #2, ..."""
    groups = sorted(groups, key=lambda group: (order.index(group.name), group.writers[0].channels[0][0]))
    seen: dict[str, int] = defaultdict(int)
    named = []
    for group in groups:
        index = seen[group.name]
        seen[group.name] += 1
        named.append(replace(group, name=f"{group.name}#{index}" if index else group.name))
    return tuple(named)
