"""A dense network prepared for pruning: its groups, calibration statistics and prices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunegym.pruning.apply import Compressed, apply_plan, score_units
from prunegym.pruning.calibration.sensitivity import error_curve
from prunegym.pruning.calibration.statistics import CalibrationInputs, calibrate
from prunegym.pruning.compensation import COMPENSATIONS
from prunegym.pruning.cost import CostModel
from prunegym.pruning.criteria import CRITERIA, statistics_of
from prunegym.pruning.decisions import DecisionSpace, technique_kinds
from prunegym.pruning.errors import WeightsError
from prunegym.pruning.graph.patterns import restrict
from prunegym.pruning.latency import LatencyPrices, LatencyTable, latency_table
from prunegym.pruning.method import DEFAULT_METHOD, Method
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.surgery.verification import trace
from prunegym.pruning.technique import CURVE_RATIOS, Foresight, Levels, Subject

Curves: TypeAlias = tuple[tuple[float, ...], ...]  # for each site, the loss of its readers at each ratio


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
        WeightsError: a weight or a BatchNorm statistic is NaN or infinite, or has no value at all.
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
        COMPENSATIONS[method.compensation]
        technique_kinds(method.techniques)
        for name, tensor in model.state_dict().items():
            if tensor.is_meta:
                raise WeightsError(f"{name} is on the meta device and has no values; load its weights first")
            if not torch.isfinite(tensor).all():
                raise WeightsError(f"{name} holds NaN or infinity; the training that wrote it diverged")
        self.model = model
        self.method = method
        self._whole_graph = trace(model, calibration.shape)
        self.graph = restrict(self._whole_graph, only=only, protect=protect)
        self.space = DecisionSpace(Subject(model, self.graph, method))
        self.calibration = calibrate(self.graph, calibration, statistics=self._statistics(), seed=seed)
        self.cost = CostModel(self.space)
        self.latency: LatencyTable | None = None  # the table by which `cost` prices latency

    def _statistics(self) -> set[str]:
        """Return the statistics that the methods in use read."""
        asked = {name for technique in self.space.techniques for name in technique.statistics}
        asked |= set(COMPENSATIONS[self.method.compensation].statistics)
        return asked | set(statistics_of(CRITERIA[self.method.criterion]))

    def enable_latency_prices_(self, table: LatencyTable | None = None) -> None:
        """Replace `cost` by one that prices latency too.

        Args:
            table: the latency table of this network; None: that of the device it is on, see `latency_table`.

        Raises:
            BudgetError: the table is of another network.
        """
        self.latency = table or latency_table(self.model, self._whole_graph)
        self.cost = CostModel(self.space, latency=LatencyPrices(self.graph, self.latency))

    @cached_property
    def scores(self) -> dict[str, Tensor]:
        """The scores of every prunable group's units, computed once for all plans."""
        return score_units(self.model, self.graph, self.calibration, criterion=self.method.criterion)

    def apply(
        self,
        plan: CompressionPlan,
        *,
        counts: Mapping[str, Tensor] | None = None,
        method: Method | None = None,
    ) -> Compressed:
        """Return a compressed copy; see `apply_plan`.

        Args:
            plan: amounts by site.
            counts: see `apply_plan`.
            method: another method than that of all plans, of the same criterion.
        """
        space = self.space if method is None else DecisionSpace(replace(self.space.subject, method=method))
        return apply_plan(space, plan, self.calibration, scores=self.scores, counts=counts)

    @cached_property
    def error_curves(self) -> Curves:
        """The curves of `error_curves_at` CURVE_RATIOS, computed once."""
        return self.error_curves_at(CURVE_RATIOS)

    def error_curves_at(self, ratios: Sequence[float]) -> Curves:
        """Return the loss of each site's readers at each ratio, 0 without a group; see `error_curve`."""
        return tuple(
            (0.0,) * len(ratios)
            if site.group is None
            else error_curve(
                self.model, site.group, self.calibration, ratios=ratios, scores=self.scores[site.name]
            )
            for site in self.space.sites
        )

    @cached_property
    def foresight(self) -> Foresight:
        """What calibration tells of the sites before any plan is applied, computed once."""
        units = [site.group.units if site.group else 1 for site in self.space.sites]
        return Foresight(
            np.array(units, dtype=np.int64),
            np.array(self.error_curves),
            self.cost.vanishing_shares("macs"),
            self.calibration,
        )

    def foreseen_losses(self, levels: Levels) -> NDArray[np.float64]:
        """Return the loss that the techniques foresee at each site of a plan: [sites]."""
        return np.sum(
            [technique.foreseen(self.foresight, levels) for technique in self.space.techniques], axis=0
        )
