"""How well the output of a residual block can be had from its input alone, by a linear map of channels."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from prunegym.pruning.calibration.collectors import Collector, by_channel
from prunegym.pruning.calibration.moments import RIDGE, FullSums, damped
from prunegym.pruning.calibration.statistics import STATISTICS, Statistic, Survey
from prunegym.pruning.calibration.unfolding import sampled_positions
from prunegym.pruning.graph.blocks import find_blocks

MAX_CHANNELS = 4096  # of input and output together; wider blocks are not looked at


class ReplacementLosses:
    """For each block, the share of its output's variance that no linear map of its input explains.

    That is 1 - R^2 = 1 - tr(C_yx (C_xx + lambda I)^-1 C_xy) / tr(C_yy), with the covariances, over positions
    and inputs, of the channels of the block's input x and of its output y; a number in [0, 1].

    Args:
        blocks: names of submodules that map one tensor, [images, channels, ...], to another of its shape.
    """

    reads_outputs = True

    def __init__(self, blocks: Iterable[str]) -> None:
        self._blocks = frozenset(blocks)
        self._sums: dict[str, FullSums] = {}

    def wants(self, name: str) -> bool:
        """See Collector."""
        return name in self._blocks

    def add(self, name: str, module: nn.Module, x: Tensor, y: Tensor | None) -> None:
        """See Collector."""
        assert y is not None  # it reads outputs
        values = torch.cat([by_channel(module, x), by_channel(module, y)], dim=1)
        if values.size(1) > MAX_CHANNELS:
            return
        places = sampled_positions(values.size(2), torch.Generator().manual_seed(0))
        rows = values[:, :, places].movedim(1, 2).flatten(0, 1)[None]
        if name not in self._sums:
            self._sums[name] = FullSums(rows)
        self._sums[name].add(rows)

    def result(self) -> dict[str, float]:
        """See Collector; blocks that were not seen are not named."""
        return {name: _loss(sums) for name, sums in self._sums.items()}


def _loss(sums: FullSums) -> float:
    (covariance,) = sums.covariances()
    inputs = len(covariance) // 2
    inner, cross = covariance[:inputs, :inputs], covariance[:inputs, inputs:]
    total = float(covariance.diagonal()[inputs:].sum())
    factor = torch.linalg.cholesky(damped(inner, RIDGE * inner.diagonal().mean()))
    explained = float((cross * torch.cholesky_solve(cross, factor)).sum())
    return min(1.0, max(0.0, 1.0 - explained / total)) if total > 0 else 0.0


def _blocks(survey: Survey) -> Collector:
    return ReplacementLosses(block.name for block in find_blocks(survey.model, survey.graph).blocks)


STATISTICS.register("blocks")(Statistic(_blocks))
