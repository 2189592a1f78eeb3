"""Trace a network and verify its groups by trial cuts: cutting a group must equal silencing it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from prunegym.pruning.graph import ChannelGraph, ChannelGroup, find_groups
from prunegym.pruning.machine_failures import raise_machine_failure
from prunegym.pruning.surgery.cutting import KeptUnits, attempt, cut

logger = logging.getLogger(__name__)

NOT_EQUAL = "cutting it does not equal silencing it"


def trace(model: nn.Module, input_shape: Sequence[int]) -> ChannelGraph:
    """Return the network's channel groups, each checked by cutting some of its units.

    A group whose cut does not equal its silenced twin is frozen with that reason.

    Args:
        model: any module whose `forward` takes one batch of images; it is not changed.
        input_shape: shape of one image, (channels, height, width).

    Raises:
        UntraceableModelError: the network cannot be traced or does not run on such an image.
    """
    graph = find_groups(model, input_shape)
    admitted = _admitted(_for_trials(model, input_shape), graph, [], graph.prunable)
    good = {group.name for group in admitted}
    groups = (
        group
        if group.frozen or group.name in good
        else replace(group, frozen=NOT_EQUAL, ungated="it is frozen")
        for group in graph.groups
    )
    return replace(graph, groups=tuple(groups))


def _admitted(
    model: nn.Module, graph: ChannelGraph, accepted: Sequence[ChannelGroup], groups: Sequence[ChannelGroup]
) -> Sequence[ChannelGroup]:
    """Return the accepted groups and those that can be cut beside them; bad ones are found by halving."""
    if not groups or _agrees(model, graph, [*accepted, *groups]):
        return [*accepted, *groups]
    if len(groups) == 1:
        logger.warning("%s is frozen: %s", groups[0].name, NOT_EQUAL)
        return accepted
    middle = len(groups) // 2
    accepted = _admitted(model, graph, accepted, groups[:middle])
    return _admitted(model, graph, accepted, groups[middle:])


@contextmanager
def silenced(model: nn.Module, graph: ChannelGraph, kept: KeptUnits) -> Iterator[nn.Module]:
    """Yield the model with the pruned units' values set to zero at every reader's input."""
    masks: dict[str, Tensor] = {}
    for group in graph.groups:
        removed = set(range(group.units)) - set(kept[group.name].tolist()) if group.name in kept else set()
        for member in group.readers:
            mask = masks.setdefault(member.owner, torch.ones(graph.layers[member.owner].cin))
            mask[[channel for unit in removed for channel in member.channels[unit]]] = 0
    handles = [
        model.get_submodule(name).register_forward_pre_hook(_masking(mask)) for name, mask in masks.items()
    ]
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def _masking(mask: Tensor) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *others = args
        shape = [1] * x.dim()
        shape[-1 if isinstance(module, nn.Linear) else 1] = -1
        return (x * mask.view(shape).to(x), *others)

    return hook


@torch.no_grad()
def _agrees(model: nn.Module, graph: ChannelGraph, groups: Sequence[ChannelGroup]) -> bool:
    """Return whether cutting equals silencing with some units removed, and with all but one."""
    generator = torch.Generator().manual_seed(0)
    some = {}
    for group in groups:
        count = max(1, round(0.6 * group.units))
        some[group.name] = torch.randperm(group.units, generator=generator)[:count].sort().values
    if not _trial_agrees(model, graph, some, generator):
        return False
    single = {group.name: torch.randint(group.units, (1,), generator=generator) for group in groups}
    return _trial_agrees(model, graph, single, generator)


@torch.no_grad()
def _for_trials(model: nn.Module, input_shape: Sequence[int]) -> nn.Module:
    """Return a precise copy whose scales are far from zero: a muted block would hide a wrong cut."""
    model = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name != "weight" or parameter.dim() == 1:
                noise = torch.rand(parameter.shape, generator=generator)
                parameter.copy_((0.5 + noise).to(parameter))
    return in_double(model, input_shape)


@torch.no_grad()
def in_double(model: nn.Module, input_shape: Sequence[int]) -> nn.Module:
    """Return a copy in double precision; the model itself if it does not run in it.

    Deep networks can magnify the rounding of single precision until right and wrong look alike.
    """
    double = copy.deepcopy(model).cpu().double().eval()  # not every device knows double precision
    try:
        attempt(double, torch.zeros((2, *input_shape), dtype=torch.double))
    except Exception as error:  # user code may cast to another type, and then raise anything
        raise_machine_failure(error)
        return model
    return double


def _trial_agrees(model: nn.Module, graph: ChannelGraph, kept: KeptUnits, generator: torch.Generator) -> bool:
    parameter = next(model.parameters(), torch.empty(0))
    example = torch.randn((2, *graph.input_shape), generator=generator).to(parameter.device, parameter.dtype)
    try:
        small = attempt(cut(model, graph, kept), example)
    except Exception as error:  # user code may raise anything once its sizes change
        raise_machine_failure(error)
        logger.debug("a trial cut failed: %s", error)
        return False
    dense = model(example)
    with silenced(model, graph, kept):
        expected = model(example)
    return _close(small, expected, dense)


def _close(value: Any, expected: Any, dense: Any) -> bool:
    """Return whether outputs agree, as far as silencing changes them and as rounding may."""
    for small, silent, whole in zip(_tensors(value), _tensors(expected), _tensors(dense), strict=True):
        rounding = 1e-9 if silent.dtype == torch.double else 1e-3
        allowed = 1e-3 * (silent - whole).abs().max() + rounding * (1e-6 + silent.abs().max())
        if small.shape != silent.shape or not bool((small - silent).abs().max() <= allowed):
            return False
    return True


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors of an output, truth values and whole numbers as numbers that can be subtracted."""
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
    return [leaf if leaf.is_floating_point() else leaf.double() for leaf in leaves]
