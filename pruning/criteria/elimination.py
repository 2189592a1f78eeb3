"""Backward elimination: remove one unit at a time, the one that costs its readers least."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prunegym.pruning.calibration.moments import RIDGE, Moments
from prunegym.pruning.calibration.statistics import Calibration
from prunegym.pruning.criteria.filters import l1
from prunegym.pruning.criteria.records import CRITERIA, reading
from prunegym.pruning.graph import ChannelGroup, Member


@CRITERIA.register("elimination")
@reading("moments")
@torch.no_grad()
def elimination(model: nn.Module, group: ChannelGroup, calibration: Calibration) -> Tensor:
    """Return the rank at which each unit is removed when the least costly one is removed again and again.

    A removal costs the output variance that a reader loses although its remaining inputs make up for the unit
    by least squares: as a share of the reader's dense output variance, summed over the readers. All of it
    follows from the cached moments (the optimal brain surgeon of Hassibi and Stork 1993, by blocks).

    A reader without moments (a transposed convolution), or whose output is constant, does not count; a group
    left with none is scored by `l1`. In a reader known by fewer sampled rows than it has inputs, a unit costs
    all the variance that it brings, as if no other could make up for any of it.

    Returns:
        [units], float64: 0 for the first to go, units - 1 for the last.
    """
    parts = [
        part
        for reader in group.readers
        if reader.owner in calibration.moments
        for part in _parts(model.get_submodule(reader.owner), reader, calibration.moments[reader.owner])
    ]
    if not parts:
        return l1(model, group, calibration)
    kept, scores = torch.arange(group.units), torch.empty(group.units, dtype=torch.float64)
    for rank in range(group.units):
        costs = torch.stack([part.costs() for part in parts]).sum(0).cpu()
        ties = (costs == costs.min()).nonzero()[:, 0]
        # of equals the highest number is removed: `select` keeps the lower
        slot = int(ties[kept[ties].argmax()])
        scores[kept[slot]] = rank
        kept = _shortened_(kept, slot)
        for part in parts:
            part.remove_(slot)
    return scores


class _Part(Protocol):
    """One convolution group of a reader, which prices the removal of each kept unit."""

    def costs(self) -> Tensor:
        """Return the share of output variance lost by removing each kept unit: [kept]."""
        ...

    def remove_(self, slot: int) -> None:
        """Remove the unit at `slot`; the last one takes its place."""
        ...


def _parts(layer: Any, reader: Member, moments: Moments) -> Iterator[_Part]:
    """Yield a reader's convolution groups, scaled so that its output has a variance of one."""
    weight = layer.weight.double()
    by_group = weight.flatten(1).unflatten(0, (len(moments.covariances), -1))  # [groups, cout / groups, dims]
    cin, kernel = weight.size(1), weight[0, 0].numel()
    channels = torch.tensor(reader.channels)
    channels = channels[channels < cin].unflatten(0, (len(channels), -1))  # alike in every convolution group
    # [units, inputs per unit]: places in a row of the flattened weight
    inputs = (channels[:, :, None] * kernel + torch.arange(kernel)).flatten(1).to(weight.device)
    always = torch.ones_like(by_group[0, 0]).index_fill_(0, inputs.flatten(), 0).nonzero()[:, 0]
    order = torch.cat([always, inputs.flatten()])  # inputs from other groups are kept, and make up for more
    factors = [covariance.factor(order, ridge=RIDGE) for covariance in moments.covariances]
    pairs = list(zip(by_group[:, :, order], factors, strict=True))
    variance = sum(float((rows @ factor).square().sum()) for rows, factor in pairs)
    for rows, factor in pairs if variance > 0 else ():
        own = (rows[:, len(always) :] / variance**0.5).T.unflatten(0, inputs.shape)
        if len(factor) == factor.size(1):
            yield _Refitted(own, factor[len(always) :, len(always) :])
        else:
            yield _Dropped(own, factor[len(always) :])


class _Refitted:
    """A part whose weight W on the kept units is refitted to make up for those removed.

    With P the inverse of the inputs' covariance, removing the inputs R costs tr(W_R P_RR^-1 W_R'), after
    which W_S -= W_R P_RR^-1 P_RS and P_SS -= P_SR P_RR^-1 P_RS.
    """

    def __init__(self, weight: Tensor, factor: Tensor) -> None:
        self._block = weight.size(1)
        self._weight = weight.flatten(0, 1).contiguous()  # W': [kept * block, cout]
        self._precision = torch.cholesky_inverse(factor)  # P: [kept * block, kept * block]

    def costs(self) -> Tensor:
        """See _Part."""
        blocks = self._precision.unflatten(1, (-1, self._block)).unflatten(0, (-1, self._block))
        diagonal = blocks.diagonal(dim1=0, dim2=2).movedim(2, 0)  # [kept, block, block]
        return _energy(self._weight.unflatten(0, (-1, self._block)), torch.linalg.inv(diagonal))

    def remove_(self, slot: int) -> None:
        """See _Part."""
        block = slice(slot * self._block, (slot + 1) * self._block)
        factor = torch.linalg.cholesky(self._precision[block, block])
        spread = torch.linalg.solve_triangular(factor, self._precision[block], upper=False)
        load = torch.linalg.solve_triangular(factor, self._weight[block], upper=False)
        self._weight.addmm_(spread.T, load, alpha=-1)
        self._precision.addmm_(spread.T, spread, alpha=-1)
        self._weight = _shortened_(self._weight, slot, self._block)
        self._precision = _shortened_(_shortened_(self._precision, slot, self._block).T, slot, self._block).T


class _Dropped:
    """A part whose weight stays as it is: too few rows were sampled to say what makes up for what."""

    def __init__(self, weight: Tensor, factor: Tensor) -> None:
        rows = factor.unflatten(0, (len(weight), -1))  # [units, block, rank]
        self._costs = _energy(weight, rows @ rows.mT)

    def costs(self) -> Tensor:
        """See _Part."""
        return self._costs

    def remove_(self, slot: int) -> None:
        """See _Part."""
        self._costs = _shortened_(self._costs, slot)


def _energy(weight: Tensor, covariance: Tensor) -> Tensor:
    """Return tr(W C W') for each unit, from W' [units, block, cout] and C [units, block, block]."""
    return (weight @ weight.mT * covariance).sum((1, 2))


def _shortened_(values: Tensor, slot: int, block: int = 1) -> Tensor:
    """Return a view without the rows of `slot`, whose place the last ones take."""
    values[slot * block : (slot + 1) * block] = values[len(values) - block :].clone()
    return values[: len(values) - block]
