"""Apply a plan: the order of operations, written once."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from prunegym.pruning.calibration.statistics import Calibration
from prunegym.pruning.compensation import COMPENSATIONS, Compensation, PlannedCut
from prunegym.pruning.cost import Widths, plan_widths
from prunegym.pruning.criteria import CRITERIA, select
from prunegym.pruning.graph import ChannelGraph
from prunegym.pruning.plan import PruningPlan
from prunegym.pruning.runtime.fitting import cut_gates, fit_gates_, gate_site
from prunegym.pruning.runtime.gates import GateSite, RuntimeGates, attach_gates_, detach_gates_
from prunegym.pruning.surgery.cutting import Structure, axis_cuts, cut_


@dataclass(frozen=True)
class Method:
    """The registered methods by which a plan is applied."""

    criterion: str = "l1"
    compensation: str = "least-squares"
    round_to: int = 1  # units of every group are rounded to a multiple of this


DEFAULT_METHOD = Method()


@dataclass(frozen=True)
class Compressed:
    """A compressed network, the difference of its shape from the dense one, and its gates."""

    model: nn.Module
    structure: Structure
    gates: tuple[GateSite, ...]
    widths: Widths


@torch.no_grad()
def apply_plan(
    model: nn.Module,
    graph: ChannelGraph,
    plan: PruningPlan,
    calibration: Calibration,
    *,
    method: Method = DEFAULT_METHOD,
    scores: Mapping[str, Tensor] | None = None,
    counts: Mapping[str, Tensor] | None = None,
) -> Compressed:
    """Compress a copy of `model` as `plan` says; the input model is left untouched.

    Args:
        model: the dense network.
        graph: the network's groups, from `trace`.
        plan: ratios per group; groups that it does not name stay whole.
        calibration: statistics of the dense network.
        method: criterion, compensation and rounding.
        scores: the result of `score_units` for the same network and criterion, if it is at hand.
        counts: group -> units that run for each calibration image, int64 [images], while gates and weights
            are fitted; other groups run as many as the plan says.

    Raises:
        PlanError: the plan asks for what the network cannot do.
        UnknownNameError: the plan names an unknown group, or the method an unknown part.
    """
    widths = plan_widths(graph, plan, round_to=method.round_to)
    compensation = COMPENSATIONS[method.compensation]
    scores = scores or score_units(model, graph, calibration, criterion=method.criterion)
    pruned = [(group, int(count)) for group, count in zip(graph.prunable, widths.kept, strict=True)]
    kept = {group.name: select(scores[group.name], count) for group, count in pruned if count < group.units}
    dense, model = model, copy.deepcopy(model)
    cuts = axis_cuts(model, graph, kept)
    executed = {
        group.name: int(runs)
        for (group, count), runs in zip(pruned, widths.executed, strict=True)
        if runs < count
    }
    planned = PlannedCut(dense, graph, kept, cuts, calibration, executed)
    compensation.apply_(model, planned)
    gates = _fitted_gates(model, planned, compensation, counts or {})
    model, structure = cut_(model, graph, kept)
    attach_gates_(model, gates)
    if compensation.finish_ is not None and (cuts or executed):
        compensation.finish_(model, planned)
    gained = (
        name
        for name in graph.layers
        if model.get_submodule(name).bias is not None and dense.get_submodule(name).bias is None
    )
    return Compressed(model, replace(structure, biases=tuple(gained)), gates.sites, widths)


def _fitted_gates(
    model: nn.Module, planned: PlannedCut, compensation: Compensation, counts: Mapping[str, Tensor]
) -> RuntimeGates:
    """Fit gates, and the layers that read through them, before the cut; return the gates for after it."""
    gates = RuntimeGates(
        tuple(gate_site(model, planned.graph.group(name), runs) for name, runs in planned.executed.items())
    )
    for group, by_image in counts.items():
        gates.gate_for(group).count_of = partial(_of_first_images, by_image)
    attach_gates_(model, gates)
    fit_gates_(model, gates, planned.kept, planned.cuts, planned.calibration)
    if gates.sites and compensation.gated_ is not None:
        compensation.gated_(model, planned)
    detach_gates_(model)
    return cut_gates(gates, planned.kept, planned.cuts)


def _of_first_images(counts: Tensor, pooled: Tensor, scores: Tensor) -> Tensor:
    """Return the counts of as many images as take part in a fit: they are the first ones."""
    return counts[: len(pooled)].to(pooled.device)


def score_units(
    model: nn.Module, graph: ChannelGraph, calibration: Calibration, *, criterion: str
) -> dict[str, Tensor]:
    """Return the scores of every prunable group's units, [units] each; they depend on no plan."""
    return {group.name: CRITERIA[criterion](model, group, calibration) for group in graph.prunable}
