"""Progressive least squares: inputs from the compressed network so far, targets from the dense one."""

from __future__ import annotations

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
from prunegym.pruning.graph.blocks import ADDITIONS
from prunegym.pruning.graph.interpreter import Lockstep
from prunegym.pruning.modes import evaluating
from prunegym.pruning.runtime.gates import gates_of, pooled_input

ROUNDS = 3  # of fitting a gate at its reader
SMALL_SCALE = 1e-3  # of the mean squared scale of a BatchNorm: far below it a channel cannot correct a sum


def progressive_(model: nn.Module, planned: PlannedCut) -> None:
    """Refit every layer from the first cut on, in execution order.

    Beyond least squares on the dense network's moments: a layer sees its inputs as the compressed layers
    before it leave them; layers without removed inputs are refitted too, since what they read has changed;
    and the last layer before a residual sum makes up for the other summand's error (docs/decisions.md, D20).

    That takes images which run through the dense network itself. On noise, with BatchNorm statistics of its
    own, the compressed layers drift away with each layer: there it is plain least squares.
    """
    inputs = planned.calibration.inputs
    if inputs.reference is not planned.dense or planned.executed:  # gates are fitted afterwards
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
    """A layer to refit, and its input in the dense and in the compressed network."""

    layer: str
    dense: Tensor
    compressed: Tensor
    end: fx.Node  # the layer's node, or that of the BatchNorm behind it


class _ProgressiveRefit:
    """Refits the layers of `model` in the order in which a Lockstep of it and the dense network runs them."""

    def __init__(self, model: nn.Module, planned: PlannedCut, positions: int | None) -> None:
        gates = gates_of(model)
        self._model = model
        self._planned = planned
        self._positions = positions
        self._gated = gates.by_reader() if gates else {}
        self._graph = planned.graph
        self._dense = planned.dense
        self._cut = {cut.owner for cut in planned.cuts if cut.axis == "in"} | self._gated.keys()
        self._met: set[str] = set()
        self._waiting: dict[fx.Node, list[_Job]] = defaultdict(list)

    def before(self, node: fx.Node, lockstep: Lockstep) -> None:
        """Refit the layer that comes next, or those that waited for the sum that comes next."""
        # first the layers with cut inputs, so that the others see the error that these leave
        for job in sorted(self._waiting.pop(node, ()), key=lambda job: job.layer not in self._cut):
            self._refit_at_sum(job, node, lockstep)
        name = str(node.target)
        layer = self._graph.layers.get(name) if node.op == "call_module" else None
        if layer is None or layer.depthwise or name in self._met:
            return
        if not takes_refit(self._model, self._planned, name):
            return
        self._met.add(name)
        end = node if layer.batch_norm is None else next(iter(node.users))
        users = list(end.users)
        is_sum = len(users) == 1 and users[0].target in ADDITIONS and not users[0].kwargs
        dense, compressed = lockstep.inputs(node)
        job = _Job(name, dense, compressed, end)
        if is_sum and len(users[0].all_input_nodes) == 2:
            self._waiting[users[0]].append(job)
        elif self._is_changed(job):
            self._refit(job)

    def _is_changed(self, job: _Job) -> bool:
        return job.layer in self._cut or not torch.equal(job.dense, job.compressed)

    def _refit_at_sum(self, job: _Job, total: fx.Node, lockstep: Lockstep) -> None:
        """Refit a layer whose output is added to another summand, to make up for that one's error as well.

        See docs/decisions.md, D20.
        """
        (other,) = (node for node in total.all_input_nodes if node is not job.end)
        dense, compressed = lockstep.values(other)
        own = lockstep.values(job.end)[0]
        alike = isinstance(dense, Tensor) and dense.shape == own.shape  # else it is broadcast, or a number
        error = dense - compressed if alike else torch.zeros_like(own)
        if not self._is_changed(job) and not error.any():
            return
        self._refit(job, self._before_batch_norm(job.layer, error))
        layer = self._graph.layers[job.layer]
        value = self._model.get_submodule(job.layer)(job.compressed)
        if layer.batch_norm is not None:
            value = self._model.get_submodule(layer.batch_norm)(value)
        lockstep.replace(job.end, 1, value)

    def _before_batch_norm(self, layer: str, change: Tensor) -> Tensor:
        """Return the change of a layer's output that changes its BatchNorm's output by `change`, nearly."""
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
