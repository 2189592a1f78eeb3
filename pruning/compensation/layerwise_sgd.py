"""Layer-wise SGD: each reader is trained alone towards the dense layer's output (Horton et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunegym.pruning.calibration.statistics import observe
from prunegym.pruning.calibration.unfolding import unfolded
from prunegym.pruning.compensation.least_squares import output_mean
from prunegym.pruning.compensation.readers import kept_dimensions, shift_output_
from prunegym.pruning.compensation.records import COMPENSATIONS, Compensation, PlannedCut
from prunegym.pruning.surgery.cutting import AxisCut
from prunegym.pruning.surgery.equalization import Equalization, batch_norm_line, equalize
from prunegym.pruning.threads import one_thread

ITERATIONS = 200
MINI_BATCH = 256  # rows, each the kernel's input at one position
RELATIVE_STEP = 0.2  # of the layer's mean weight, at first (docs/decisions.md, D22)
READERS_AT_ONCE = 16  # whose inputs are held in memory together; one pass over the images each time


@torch.no_grad()
def _layerwise_sgd_(model: nn.Module, planned: PlannedCut) -> None:
    """Train every reader with removed inputs in equalized coordinates, and fold the result back."""
    equalization = equalize(planned.dense, planned.graph)
    cuts = [cut for cut in planned.cuts if cut.axis == "in" and cut.owner in planned.calibration.moments]
    for start in range(0, len(cuts), READERS_AT_ONCE):
        _train_(model, planned, equalization, cuts[start : start + READERS_AT_ONCE])


COMPENSATIONS.register("layerwise-sgd")(Compensation(_layerwise_sgd_, shifts_bias=True))


def _train_(
    model: nn.Module, planned: PlannedCut, equalization: Equalization, cuts: Sequence[AxisCut]
) -> None:
    """Train the readers of these cuts, each on its own, on the inputs of one pass over the images."""
    students = {cut.owner: _Student(planned, equalization, cut) for cut in cuts}
    observe(planned.graph, planned.calibration.inputs, students, lambda name, x: students[name].watch(x))
    for name, student in students.items():
        layer: Any = model.get_submodule(name)
        dense, learned = layer.weight.detach().clone(), student.trained()
        moments = planned.calibration.moments[name]
        layer.weight.copy_(learned)
        shift = output_mean(dense, moments) - output_mean(learned, moments)
        shift_output_(model, planned.graph.layers[name], shift)


class _Student:
    """A reader that learns a change of its weights on the kept inputs, to stand in for the removed ones.

    All in equalized coordinates: inputs times v_in, outputs over v_out and behind the BatchNorm.
    """

    def __init__(self, planned: PlannedCut, equalization: Equalization, cut: AxisCut) -> None:
        self._dense: Any = planned.dense.get_submodule(cut.owner)
        equalized: Any = equalization.model.get_submodule(cut.owner)
        shape = planned.graph.layers[cut.owner]
        groups, cin = shape.conv_groups, shape.cin // shape.conv_groups
        self._is_kept = kept_dimensions(torch.tensor(cut.kept), cin, shape.kernel)
        weight: Tensor = equalized.weight
        self._weight = weight.flatten(1).unflatten(0, (groups, -1))  # [groups, outputs, dims]
        self._v_in = equalization.v_in[cut.owner].view(groups, 1, cin).repeat_interleave(shape.kernel, 2)
        back = equalization.v_out[cut.owner]  # from an equalized output to that before the BatchNorm, [cout]
        if shape.batch_norm is not None:
            scale, _ = batch_norm_line(planned.dense.get_submodule(shape.batch_norm))
            back = torch.where(scale == 0, 0.0, back / scale)  # rows that the BatchNorm silences may stay
        self._back = back.view(groups, -1, 1)
        # one generator per layer, so that the result does not depend on which others are cut
        self._generator = torch.Generator().manual_seed(0)
        self._inputs: list[Tensor] = []
        self._targets: list[Tensor] = []

    def watch(self, x: Tensor) -> None:
        """Take in a batch of the dense layer's inputs."""
        u = unfolded(self._dense, x, self._generator) * self._v_in.to(x)
        self._inputs.append(u[:, :, self._is_kept])
        self._targets.append(u[:, :, ~self._is_kept] @ self._weight[:, :, ~self._is_kept].mT)

    def trained(self) -> Tensor:
        """Return the learned weight in the dense layer's coordinates and shape; zero on removed inputs."""
        inputs, targets = torch.cat(self._inputs, 1), torch.cat(self._targets, 1)
        with one_thread():
            change = _fit(inputs, targets, RELATIVE_STEP * float(self._weight.abs().mean()), self._generator)
        dense = self._dense.weight.flatten(1).unflatten(0, self._weight.shape[:2])
        learned = torch.zeros_like(dense)
        unscaled = change.mT * (self._v_in[:, :, self._is_kept] * self._back)
        learned[:, :, self._is_kept] = dense[:, :, self._is_kept] + unscaled.to(dense)
        return learned.reshape(self._dense.weight.shape)


def _fit(inputs: Tensor, targets: Tensor, step: float, generator: torch.Generator) -> Tensor:
    """Regress targets on inputs by gradient descent, from zero; constants of the targets do not count.

    Args:
        inputs: [conv groups, rows, kept dimensions].
        targets: [conv groups, rows, outputs].
        step: the change of an entry in an iteration, at first.
        generator: draws the mini-batches.

    Returns:
        [conv groups, kept dimensions, outputs].
    """
    change = nn.Parameter(inputs.new_zeros(len(inputs), inputs.size(2), targets.size(2)))
    optimizer = torch.optim.Adam([change], lr=step)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, ITERATIONS)
    for _ in range(ITERATIONS):
        rows = torch.randint(inputs.size(1), (MINI_BATCH,), generator=generator).to(inputs.device)
        x = inputs[:, rows]
        error = x @ change - targets[:, rows]
        # centred, for the mean is restored in closed form afterwards
        change.grad = x.mT @ (error - error.mean(1, keepdim=True)) / MINI_BATCH
        optimizer.step()
        schedule.step()
    return change.detach()
