"""Plans, levels and prices of static and runtime pruning, as tests write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from prunegym.pruning.apply import Compressed, apply_plan
from prunegym.pruning.calibration.statistics import Calibration
from prunegym.pruning.cost import CostModel
from prunegym.pruning.decisions import DecisionSpace
from prunegym.pruning.graph import ChannelGraph
from prunegym.pruning.method import Method
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.technique import Levels, Subject


def space_of(model: nn.Module, graph: ChannelGraph, method: Method = Method()) -> DecisionSpace:  # noqa: B008
    """What can be decided about a network."""
    return DecisionSpace(Subject(model, graph, method))


def cost_of(
    model: nn.Module, graph: ChannelGraph, *, compensation: str = "none", **options: Any
) -> CostModel:
    """The prices of a network's plans."""
    return CostModel(space_of(model, graph, Method(compensation=compensation)), **options)


def apply_to(
    model: nn.Module,
    graph: ChannelGraph,
    plan: CompressionPlan,
    calibration: Calibration,
    *,
    method: Method = Method(),  # noqa: B008
    **options: Any,
) -> Compressed:
    """Apply a plan to a network that is calibrated."""
    return apply_plan(space_of(model, graph, method), plan, calibration, **options)


def ratios(static: float = 0.0, runtime: float = 0.0) -> dict[str, float]:
    """A decision about a group."""
    return {"static_ratio": static, "runtime_ratio": runtime}


def even_plan(graph: ChannelGraph, static: float, runtime: float = 0.0) -> CompressionPlan:
    """Equal ratios for all groups; a runtime ratio only where there can be a gate."""
    return CompressionPlan(
        {group.name: ratios(static, 0.0 if group.ungated else runtime) for group in graph.prunable}
    )


def levels_of(kept: Sequence[int] | np.ndarray, executed: Sequence[int] | np.ndarray | None = None) -> Levels:
    """The levels of a plan that keeps and executes so many units of each group."""
    runs = kept if executed is None else executed
    return {"channels": np.array(kept, dtype=np.int64), "gates": np.array(runs, dtype=np.int64)}
