"""Records of a compensation and of the cut it is for. A registry: add one module to add a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from prunegym.pruning.calibration.statistics import Calibration
from prunegym.pruning.graph import ChannelGraph
from prunegym.pruning.registry import Registry
from prunegym.pruning.surgery.cutting import AxisCut, KeptUnits


@dataclass(frozen=True)
class PlannedCut:
    """A cut that is about to be made, and all that is known of the dense network."""

    dense: nn.Module  # left as it is
    graph: ChannelGraph
    kept: KeptUnits  # group -> kept units, ascending; groups that stay whole are not named
    cuts: tuple[AxisCut, ...]  # the kept positions along every axis that is cut
    calibration: Calibration
    # group -> units that run for each input; groups without a gate are not named
    executed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Compensation:
    """A method that makes up for removed channels.

    `apply_` changes a full-size copy of the dense network in place; what it leaves in the removed channels
    does not count, since they are cut afterwards. Where the plan has gates, they are then attached to the
    copy and fitted, and `gated_` may change it and them once more. `finish_` changes the weights of the cut
    network.
    """

    apply_: Callable[[nn.Module, PlannedCut], None]
    shifts_bias: bool  # whether a reader without bias or BatchNorm may gain a bias
    gated_: Callable[[nn.Module, PlannedCut], None] | None = None
    finish_: Callable[[nn.Module, PlannedCut], None] | None = None
    statistics: tuple[str, ...] = ("moments",)  # that calibration is to collect, names in STATISTICS


COMPENSATIONS: Registry[Compensation] = Registry("compensation")


# the removed channels are dropped, and everything else stays as it is
COMPENSATIONS.register("none")(Compensation(lambda model, planned: None, shifts_bias=False, statistics=()))
