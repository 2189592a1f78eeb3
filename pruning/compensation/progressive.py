"""Least squares in execution order: inputs from the compressed network so far, targets from the dense one."""

from __future__ import annotations

import operator
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunegym.pruning.compensation.gated import PIXELS, GatedRows, positions_of, refit_gated_, refit_reader_
from prunegym.pruning.compensation.least_squares import least_squares_
from prunegym.pruning.compensation.readers import (
    grouped_rows,
    restore_,
    takes_refit,
)
from prunegym.pruning.compensation.records import COMPENSATIONS, Compensation, PlannedCut
from prunegym.pruning.compensation.sampled_rows import first_images, input_rows, output_rows
from prunegym.pruning.graph import ChannelGraph
from prunegym.pruning.graph.interpreter import Lockstep
from prunegym.pruning.modes import evaluating
from prunegym.pruning.runtime.gates import gates_of, pooled_input

ROUNDS = 3  # of fitting a gate at its reader
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
SMALL_SCALE = 1e-3  # of the mean squared scale of a BatchNorm: far below it a channel cannot correct a sum


def progressive_(model: nn.Module, planned: PlannedCut) -> None:
    """Refit every layer from the first cut on, in execution order.

    Beyond least squares on the dense network's moments: a layer sees its inputs as the compressed layers
    before it leave them; layers that lost no input are refitted too, since what they read has changed; and
    the last layer before a residual sum makes up for what the other summand has lost.

    That takes images which run through the dense network itself. Of noise, with BatchNorm statistics of its
    own, the compressed layers make something else with each layer: it is left at plain least squares.
    """
    inputs = planned.calibration.inputs
    if inputs.reference is not planned.dense or planned.executed:  # gates are fitted to what this leaves
        least_squares_(model, planned)
    else:
        _refit_in_order_(model, planned, first_images(inputs), positions=None)


def progressive_gated_(model: nn.Module, planned: PlannedCut) -> None:
    """Refit every layer anew, in execution order, with gates attached: see `refit_reader_`."""
    inputs = planned.calibration.inputs
    if inputs.reference is not planned.dense:
        refit_gated_(model, planned)
        return
    for name in dict.fromkeys(cut.owner for cut in planned.cuts if cut.axis == "in"):
        restore_(model, planned, name)
    images = first_images(inputs, pixels=PIXELS)
    _refit_in_order_(model, planned, images, positions=positions_of(len(images)))


def _refit_in_order_(model: nn.Module, planned: PlannedCut, images: Tensor, *, positions: int | None) -> None:
    refit = _ProgressiveRefit(model, planned, positions)
    lockstep = Lockstep(planned.graph, [planned.dense, model], images)
    with evaluating(planned.dense, model):
        for node in lockstep:
            refit.before(node, lockstep)


COMPENSATIONS.register("least-squares-progressive")(
    Compensation(progressive_, shifts_bias=True, gated_=progressive_gated_)
)


@dataclass(frozen=True)
class _Job:
    """A layer to refit, and what enters it in the dense and in the compressed network."""

    layer: str
    dense: Tensor
    compressed: Tensor
    end: fx.Node  # the layer's node, or that of the BatchNorm behind it


class _ProgressiveRefit:
    """Refits layers of `model` as a Lockstep of the dense network and it comes to them."""

    def __init__(self, model: nn.Module, planned: PlannedCut, positions: int | None) -> None:
        gates = gates_of(model)
        self._model = model
        self._planned = planned
        self._positions = positions
        self._gated = gates.by_reader() if gates else {}
        self._graph = planned.graph
        self._dense = planned.dense
        self._lacking = {cut.owner for cut in planned.cuts if cut.axis == "in"} | self._gated.keys()
        self._met: set[str] = set()
        self._waiting: dict[fx.Node, list[_Job]] = defaultdict(list)

    def before(self, node: fx.Node, lockstep: Lockstep) -> None:
        """Refit the layer that comes next, or those that waited for the sum that comes next."""
        # first those with a loss of their own, for the others to see what remains of it
        for job in sorted(self._waiting.pop(node, ()), key=lambda job: job.layer not in self._lacking):
            self._refit_at_sum(job, node, lockstep)
        if node.op != "call_module" or not self._takes_refit(str(node.target)):
            return
        name = str(node.target)
        self._met.add(name)
        end, total = _sum_behind(self._graph, node)
        dense, compressed = lockstep.inputs(node)
        job = _Job(name, dense, compressed, end)
        if total is not None:
            self._waiting[total].append(job)
        elif self._has_lost(job):
            self._refit(job)

    def _has_lost(self, job: _Job) -> bool:
        return job.layer in self._lacking or not torch.equal(job.dense, job.compressed)

    def _takes_refit(self, name: str) -> bool:
        layer = self._graph.layers.get(name)
        if layer is None or layer.depthwise or name in self._met:
            return False
        return takes_refit(self._model, self._planned, name)

    def _refit_at_sum(self, job: _Job, total: fx.Node, lockstep: Lockstep) -> None:
        (other,) = (node for node in total.all_input_nodes if node is not job.end)
        dense, compressed = lockstep.values(other)
        here = lockstep.values(job.end)[0]
        alike = isinstance(dense, Tensor) and dense.shape == here.shape  # else it is broadcast, or a number
        lost = dense - compressed if alike else torch.zeros_like(here)
        if not self._has_lost(job) and not lost.any():
            return
        self._refit(job, self._before_batch_norm(job.layer, lost))
        layer = self._graph.layers[job.layer]
        value = self._model.get_submodule(job.layer)(job.compressed)
        if layer.batch_norm is not None:
            value = self._model.get_submodule(layer.batch_norm)(value)
        lockstep.replace(job.end, 1, value)

    def _before_batch_norm(self, layer: str, change: Tensor) -> Tensor:
        """Return the change of the layer's output that changes its BatchNorm's output so, or nearly."""
        name = self._graph.layers[layer].batch_norm
        if name is None:
            return change
        batch_norm: Any = self._dense.get_submodule(name)
        scale = (batch_norm.running_var + batch_norm.eps).rsqrt()
        if batch_norm.affine:
            scale = scale * batch_norm.weight.detach()
        inverse = scale / (scale.square() + SMALL_SCALE * scale.square().mean())
        return change * inverse.view(1, -1, *[1] * (change.dim() - 2))

    def _refit(self, job: _Job, correction: Tensor | None = None) -> None:
        module: Any = self._dense.get_submodule(job.layer)
        weight = grouped_rows(module)
        target = input_rows(module, job.dense, positions=self._positions) @ weight.mT
        if correction is not None:
            target = target + output_rows(module, correction, positions=self._positions)
        rows = input_rows(module, job.compressed, positions=self._positions)
        means = pooled_input(module, job.compressed)
        inputs = GatedRows(rows, means, self._gated.get(job.layer, ()))
        refit_reader_(self._model, self._planned, job.layer, inputs, target, rounds=ROUNDS)


def _sum_behind(graph: ChannelGraph, node: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """Return the end of a layer and its BatchNorm, and the sum of two that alone uses it, if one does."""
    end = node if graph.layers[str(node.target)].batch_norm is None else next(iter(node.users))
    users = list(end.users)
    is_sum = len(users) == 1 and users[0].target in ADDITIONS and not users[0].kwargs
    return end, users[0] if is_sum and len(users[0].all_input_nodes) == 2 else None
