"""Least squares for readers whose inputs are skipped at run time, and gates that choose with it in mind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunegym.pruning.compensation.readers import (
    grouped_rows,
    kept_dimensions,
    restore_,
    shift_output_,
    takes_refit,
)
from prunegym.pruning.compensation.records import PlannedCut
from prunegym.pruning.compensation.sampled_rows import fit_change
from prunegym.pruning.runtime.fitting import choose_by_, fit_fill_, seen_by_gate
from prunegym.pruning.runtime.gates import GatedInput, constant_response, gates_of

PIXELS = 2**20  # of all images that take part: a choice for each input generalises by images
ROWS = 2**14  # of images and positions together, where there are so many
MIN_POSITIONS = 16
ROUNDS = 1


@torch.no_grad()
def refit_gated_(model: nn.Module, planned: PlannedCut) -> None:
    """Refit every gated reader, and the scores of its gate, on inputs of the dense network.

    Args:
        model: the compensated network, not yet cut, with gates attached and fitted; changed in place.
        planned: the planned cut.
    """
    gates = gates_of(model)
    assert gates is not None  # there is one, or there would be nothing to refit
    readers, order = gates.by_reader(), list(planned.graph.layers)
    writers = {site.writer: gates.gate_for(site.group) for site in gates.sites}
    for name, gated in sorted(readers.items(), key=lambda item: order.index(item[0])):
        if takes_refit(model, planned, name):
            rows = planned.calibration.rows[name]
            target = rows @ grouped_rows(planned.dense.get_submodule(name)).mT
            restore_(model, planned, name)
            inputs = GatedRows(rows, planned.calibration.means[name], gated)
            refit_reader_(model, planned, name, inputs, target, rounds=ROUNDS)
        if name in writers:  # its gate sees what the gates before it let through
            writers[name].choose(seen_by_gate(name, gated, planned.cuts, planned.calibration))


@dataclass(frozen=True)
class GatedRows:
    """Inputs of a reader with nothing skipped, and the gates that skip some."""

    rows: Tensor  # [conv groups, rows, dimensions], by image and position
    means: Tensor  # over all positions, [images, cin]
    gated: Sequence[GatedInput]  # whose gates' `pooled` and `mask` are those of the images


def positions_of(images: int) -> int:
    """Return the number of positions of each image that take part."""
    return max(MIN_POSITIONS, ROWS // images)


@torch.no_grad()
def refit_reader_(
    model: nn.Module,
    planned: PlannedCut,
    name: str,
    inputs: GatedRows,
    target: Tensor,
    *,
    rounds: int,
) -> None:
    """Fit a reader to the inputs that its gates let through; refit the gates' scores and fills as well.

    With the gates as they are, the weights are those of least squares on masked inputs. With these weights,
    the worth of a unit for an image is known: how much larger the reader's squared error is without it. The
    gate is fitted to that, and the weights again, `rounds` times; the round of least error is kept. A gate
    with further readers keeps its choice. Without gates it is least squares on the kept inputs.

    Args:
        model: the network, changed in place; the reader has its dense weights.
        planned: the planned cut.
        name: the name of the reader.
        inputs: the reader's inputs.
        target: the reader's output for them, without bias: [conv groups, rows, cout / groups].
        rounds: the number of times that the gate is fitted.
    """
    module: Any = model.get_submodule(name)
    gated = inputs.gated
    problem = _MaskedReader(module, inputs, target, _is_kept(planned, name, module))
    alone = len(gated) == 1 and len(gated[0].gate.fill) == 1
    best, state = None, _state(gated)
    for round_ in range(rounds + 1 if alone else 1):
        if alone:
            fit_fill_(gated[0], inputs.means)
        solution = problem.solve()
        if best is None or solution.error < best.error:
            best, state = solution, _state(gated)
        if alone and round_ < rounds:
            choose_by_(gated[0].gate, problem.worth(solution))
    for gated_input, (weights, mask) in zip(gated, state, strict=True):
        gated_input.gate.load_state_dict(weights)
        gated_input.gate.mask = mask
    assert best is not None  # there is a round 0
    module.weight.copy_(best.weight.view_as(module.weight))
    shift = best.shift
    for gated_input in gated:  # the fit counts from the fills, the gates add them
        shift = shift - constant_response(module, gated_input.fill_by_channel()[None])[0]
    shift_output_(model, planned.graph.layers[name], shift)


def _is_kept(planned: PlannedCut, name: str, module: Any) -> Tensor:
    cin, kernel = module.weight.size(1), module.weight[0, 0].numel()
    for cut in planned.cuts:
        if cut.owner == name and cut.axis == "in":
            return kept_dimensions(torch.tensor(cut.kept), cin, kernel)
    return torch.ones(cin * kernel, dtype=torch.bool)


def _state(gated: Sequence[GatedInput]) -> list[tuple[dict[str, Tensor], Tensor | None]]:
    return [
        ({key: value.clone() for key, value in gated_input.gate.state_dict().items()}, gated_input.gate.mask)
        for gated_input in gated
    ]


@dataclass(frozen=True)
class _Solution:
    weight: Tensor  # [conv groups, cout / groups, dimensions]; zero for inputs that the cut removes
    shift: Tensor  # [cout], float64
    residual: Tensor  # [conv groups, rows, cout / groups]
    error: float  # mean square of the residual


class _MaskedReader:
    """Least squares of a reader's output on the inputs that the gates let through."""

    def __init__(self, module: Any, inputs: GatedRows, target: Tensor, is_kept: Tensor) -> None:
        self._weight = grouped_rows(module)
        self._kernel = module.weight[0, 0].numel()
        self._rows = inputs.rows
        self._target = target
        self._gated = inputs.gated
        self._is_kept = is_kept.to(target.device)
        self._positions = inputs.rows.size(1) // len(inputs.means)

    def solve(self) -> _Solution:
        """Fit the weights to the masks as they are."""
        seen = self._rows
        for gated_input in self._gated:
            mask = self._by_dimension(gated_input.mask()).repeat_interleave(self._positions, dim=1)
            seen = (seen - self._by_dimension(gated_input.fill_by_channel()[None])) * mask
        seen, weight = seen[:, :, self._is_kept], self._weight[:, :, self._is_kept]
        lacking = self._target - seen @ weight.mT
        change, shift = fit_change(seen, lacking)
        change = change.to(weight)
        refitted = torch.zeros_like(self._weight)
        refitted[:, :, self._is_kept] = weight + change
        residual = lacking - seen @ change.mT - shift[:, None].to(weight)
        return _Solution(refitted, shift.flatten(), residual, float(residual.square().mean()))

    def worth(self, solution: _Solution) -> Tensor:
        """Return how much larger the squared error of an image is without a unit: [images, units], float64.

        Only for a reader with one gate.
        """
        (gated_input,) = self._gated
        assert gated_input.gate.mask is not None
        runs = gated_input.gate.mask.repeat_interleave(self._positions, dim=0)
        inner, square = torch.zeros_like(runs), torch.zeros_like(runs)
        centred = self._rows - self._by_dimension(gated_input.fill_by_channel()[None])
        channels = self._weight.size(2) // self._kernel  # of one conv group
        units = len(gated_input.gate.bias)
        conv_group, channel = gated_input.positions // channels, gated_input.positions % channels
        ordered = channel[(conv_group * units + gated_input.units).argsort(stable=True)]
        places = ordered.view(len(self._weight), units, -1, 1) * self._kernel + torch.arange(self._kernel)
        for group, dimensions in enumerate(places.flatten(2)):  # [units, dimensions of each]
            weight = solution.weight[group][:, dimensions]  # [outputs, units, dimensions of each]
            sent = centred[group][:, dimensions]
            inner += (sent * (solution.residual[group] @ solution.weight[group])[:, dimensions]).sum(2)
            gram = torch.einsum("oud,oue->ude", weight, weight)
            square += (torch.einsum("rud,ude->rue", sent, gram) * sent).sum(2)
        # a unit that runs is missing from the residual without it: |e + q|^2 - |e|^2; for one that does not
        # run it is |e|^2 - |e - q|^2
        worth = 2 * inner + torch.where(runs > 0, square, -square)
        return worth.unflatten(0, (-1, self._positions)).sum(1).double()

    def _by_dimension(self, values: Tensor) -> Tensor:
        """Return values of input channels, [n, cin], for each dimension: [conv groups, n, dimensions]."""
        return values.unflatten(1, (len(self._weight), -1)).movedim(1, 0).repeat_interleave(self._kernel, 2)
