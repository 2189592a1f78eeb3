"""Least squares in execution order: inputs from the compressed network so far, targets from the dense one."""

from __future__ import annotations

import operator
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from pruning.calibration import damped, sampled_positions, unfolded
from pruning.compensation.least_squares import kept_dimensions, least_squares_, shift_output_
from pruning.compensation.records import COMPENSATIONS, Compensation, PlannedCut
from pruning.graph import ChannelGraph
from pruning.lockstep import Lockstep
from pruning.modes import evaluating
from pruning.surgery import TRANSPOSED

PIXELS = 2**18  # of as many images as take part, since what all of them leave in a layer is held at once
FEWEST = 32  # images, however large
RIDGE = 1e-2  # of the mean input variance: inputs are noisier than those of the dense network
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
    if inputs.reference is not planned.dense:
        least_squares_(model, planned)
        return
    count = max(FEWEST, PIXELS // torch.Size(inputs.shape[1:]).numel())
    images = torch.cat(inputs.batches)[:count].to(next(model.parameters()).device)
    refit, lockstep = (
        _ProgressiveRefit(model, planned),
        Lockstep(planned.graph, [planned.dense, model], images),
    )
    with evaluating(planned.dense, model):
        for node in lockstep:
            refit.before(node, lockstep)


COMPENSATIONS.register("least-squares-progressive")(Compensation(progressive_, shifts_bias=True))


@dataclass(frozen=True)
class _Job:
    """A layer to refit, and what enters it in the dense and in the compressed network."""

    layer: str
    dense: Tensor
    compressed: Tensor
    end: fx.Node  # the layer's node, or that of the BatchNorm behind it


class _ProgressiveRefit:
    """Refits layers of `model` as a Lockstep of the dense network and it comes to them."""

    def __init__(self, model: nn.Module, planned: PlannedCut) -> None:
        self._model = model
        self._graph = planned.graph
        self._dense = planned.dense
        self._kept = {cut.owner: torch.tensor(cut.kept) for cut in planned.cuts if cut.axis == "in"}
        self._met: set[str] = set()
        self._waiting: dict[fx.Node, list[_Job]] = defaultdict(list)

    def before(self, node: fx.Node, lockstep: Lockstep) -> None:
        """Refit the layer that comes next, or those that waited for the sum that comes next."""
        # first those with a loss of their own, for the others to see what remains of it
        for job in sorted(self._waiting.pop(node, ()), key=lambda job: job.layer not in self._kept):
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
        return job.layer in self._kept or not torch.equal(job.dense, job.compressed)

    def _takes_refit(self, name: str) -> bool:
        layer = self._graph.layers.get(name)
        if layer is None or layer.depthwise or name in self._met:
            return False
        module: Any = self._model.get_submodule(name)
        # a layer that lost no input must not gain a bias: the price of a plan does not count it
        shifts = name in self._kept or layer.batch_norm is not None or module.bias is not None
        return shifts and not isinstance(module, TRANSPOSED)

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
        dense, compressed = (_rows(module, x) for x in (job.dense, job.compressed))
        groups, _, dimensions = compressed.shape
        cin = module.weight.size(1)
        kept = self._kept.get(job.layer, torch.arange(cin))
        stays = kept_dimensions(kept, cin, dimensions // cin).to(compressed.device)
        weight = module.weight.detach().flatten(1).unflatten(0, (groups, -1))
        kept_rows, kept_weight = compressed[:, :, stays], weight[:, :, stays]
        residual = dense @ weight.mT - kept_rows @ kept_weight.mT
        if correction is not None:
            residual = residual + _output_rows(module, correction, groups)
        change, shift = _ridge(kept_rows, residual)
        refitted = torch.zeros_like(weight)
        refitted[:, :, stays] = kept_weight + change.to(weight)
        fitted: Any = self._model.get_submodule(job.layer)
        fitted.weight.data.copy_(refitted.view_as(module.weight))
        shift_output_(self._model, self._graph.layers[job.layer], shift.flatten())


def _sum_behind(graph: ChannelGraph, node: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """Return the end of a layer and its BatchNorm, and the sum of two that alone uses it, if one does."""
    end = node if graph.layers[str(node.target)].batch_norm is None else next(iter(node.users))
    users = list(end.users)
    is_sum = len(users) == 1 and users[0].target in ADDITIONS and not users[0].kwargs
    return end, users[0] if is_sum and len(users[0].all_input_nodes) == 2 else None


def _rows(module: Any, x: Tensor) -> Tensor:
    """Return [conv groups, rows, dimensions]; the places are the same at every call."""
    return unfolded(module, x, torch.Generator().manual_seed(0))


def _output_rows(module: Any, y: Tensor, groups: int) -> Tensor:
    """Return a layer's output at the places that `_rows` unfolds: [conv groups, rows, cout / groups]."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(module, nn.Linear):
        flat = y.flatten(1, -2) if y.dim() > 2 else y[:, None]
    else:
        flat = y.flatten(2).mT
    rows = flat[:, sampled_positions(flat.size(1), generator)].flatten(0, 1)
    return rows.unflatten(1, (groups, -1)).movedim(1, 0)


def _ridge(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """Fit residual = change x + shift, with a penalty on the change.

    Args:
        x: [conv groups, rows, dimensions].
        residual: [conv groups, rows, cout / groups].

    Returns:
        change [conv groups, cout / groups, dimensions] and shift [conv groups, cout / groups], float64.
    """
    mean, target = x.mean(1, keepdim=True), residual.mean(1, keepdim=True)
    centred, wanted, count = x - mean, residual - target, x.size(1)
    penalty = RIDGE * centred.double().square().mean((1, 2))
    if count < x.size(2):  # fewer rows than dimensions: solved in the space of rows
        inner = (centred @ centred.mT).double() / count
        solved = _solve(inner, wanted.double(), penalty)
        change = solved.mT @ centred.double() / count
    else:
        inner = (centred.mT @ centred).double() / count
        change = _solve(inner, (centred.mT @ wanted).double() / count, penalty).mT
    shift = target.double() - mean.double() @ change.mT
    return change, shift[:, 0]


def _solve(inner: Tensor, right: Tensor, penalty: Tensor) -> Tensor:
    """Return (inner + penalty I)^-1 right, for each conv group."""
    solved = [
        torch.cholesky_solve(one, torch.linalg.cholesky(damped(matrix, weight)))
        for matrix, one, weight in zip(inner, right, penalty, strict=True)
    ]
    return torch.stack(solved)
