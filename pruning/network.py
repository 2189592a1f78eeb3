"""A dense network prepared for pruning: its groups, calibration statistics and prices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor, nn

from prunegym.pruning.apply import DEFAULT_METHOD, Compressed, Method, apply_plan, score_units
from prunegym.pruning.calibration.sensitivity import error_curve
from prunegym.pruning.calibration.statistics import CalibrationInputs, calibrate
from prunegym.pruning.compensation import COMPENSATIONS
from prunegym.pruning.cost import CostModel
from prunegym.pruning.criteria import CRITERIA
from prunegym.pruning.errors import PlanError, WeightsError
from prunegym.pruning.graph.patterns import restrict
from prunegym.pruning.latency import LatencyPrices, LatencyTable, latency_table
from prunegym.pruning.plan import PruningPlan
from prunegym.pruning.surgery.verification import trace

Curves: TypeAlias = tuple[tuple[float, ...], ...]  # for each prunable group, its loss at each ratio

CURVE_RATIOS = (0.25, 0.5, 0.75)


class PrunableNetwork:
    """A network that is traced, calibrated and priced once, so that any number of plans can be applied.

    Args:
        model: the dense network; it is never changed.
        calibration: the inputs on which it is observed; see `real_images` and SYNTHESES.
        method: criterion, compensation and rounding of all plans.
        only: patterns of layers to admit; see `restrict`.
        protect: patterns of layers to freeze.
        seed: the seed of the positions sampled for calibration.

    Raises:
        UntraceableModelError: the network cannot be traced.
        WeightsError: a weight or a BatchNorm statistic is NaN or infinite.
        UnknownNameError: a pattern matches no layer, or the method names an unknown part.
        PlanError: nothing is left to prune.
        DataError: activations are not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        calibration: CalibrationInputs,
        *,
        method: Method = DEFAULT_METHOD,
        only: Sequence[str] = (),
        protect: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        CRITERIA[method.criterion]  # unknown names are refused before the work begins
        compensation = COMPENSATIONS[method.compensation]
        for name, tensor in model.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise WeightsError(f"{name} holds NaN or infinity; the training that wrote it diverged")
        self.model = model
        self.method = method
        self._whole_graph = trace(model, calibration.shape)
        self.graph = restrict(self._whole_graph, only=only, protect=protect)
        if not self.graph.prunable:
            reasons = sorted({group.frozen for group in self.graph.groups if group.frozen})
            raise PlanError(f"no channel group may be pruned: {'; '.join(reasons)}")
        self.calibration = calibrate(self.graph, calibration, seed=seed)
        self.cost = CostModel(self.graph, model, shifts_bias=compensation.shifts_bias)
        self.latency: LatencyTable | None = None  # the table by which `cost` prices latency

    def enable_latency_prices_(self, table: LatencyTable | None = None) -> None:
        """Replace `cost` by one that prices latency too.

        Args:
            table: the latency table of this network; None: that of the device it is on, see `latency_table`.

        Raises:
            BudgetError: the table is of another network.
        """
        self.latency = table or latency_table(self.model, self._whole_graph)
        self.cost = CostModel(
            self.graph,
            self.model,
            shifts_bias=COMPENSATIONS[self.method.compensation].shifts_bias,
            latency=LatencyPrices(self.graph, self.latency),
        )

    @cached_property
    def scores(self) -> dict[str, Tensor]:
        """The scores of every prunable group's units, computed once for all plans."""
        return score_units(self.model, self.graph, self.calibration, criterion=self.method.criterion)

    def apply(self, plan: PruningPlan, *, counts: Mapping[str, Tensor] | None = None) -> Compressed:
        """Return a compressed copy; see `apply_plan`."""
        return apply_plan(
            self.model,
            self.graph,
            plan,
            self.calibration,
            method=self.method,
            scores=self.scores,
            counts=counts,
        )

    @cached_property
    def error_curves(self) -> Curves:
        """The curves of `error_curves_at` CURVE_RATIOS, computed once."""
        return self.error_curves_at(CURVE_RATIOS)

    def error_curves_at(self, ratios: Sequence[float]) -> Curves:
        """Return, for each prunable group, its readers' loss at each of the ratios; see `error_curve`."""
        return tuple(
            error_curve(
                self.model,
                group,
                self.calibration,
                ratios=ratios,
                scores=self.scores[group.name],
            )
            for group in self.graph.prunable
        )
