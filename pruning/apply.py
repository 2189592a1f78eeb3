"""Apply a plan: every technique in use carries out its part, stage by stage."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunegym.pruning.calibration.statistics import Calibration
from prunegym.pruning.compensation import COMPENSATIONS
from prunegym.pruning.criteria import CRITERIA
from prunegym.pruning.decisions import DecisionSpace
from prunegym.pruning.errors import PruningError
from prunegym.pruning.graph import ChannelGraph, find_groups
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.runtime.gates import GateSite, RuntimeGates, attach_gates_, detach_gates_, gate_sites
from prunegym.pruning.surgery.cutting import axis_size
from prunegym.pruning.technique import Levels, Rebuilding, Stage, Work
from prunegym.pruning.techniques import TECHNIQUES

MAX_ENTRIES = 2**31  # of a rebuilt network's gates, where nothing is known of its weights


@dataclass(frozen=True)
class Compressed:
    """A compressed network, and what rebuilds it from the dense one."""

    model: nn.Module
    records: Mapping[str, Any]  # technique -> what it did, as plain data
    biases: tuple[str, ...]  # layers that gained one from compensation
    levels: Levels

    @property
    def gates(self) -> tuple[GateSite, ...]:
        """The sites of its runtime gates."""
        return gate_sites(self.model)


@torch.no_grad()
def apply_plan(
    space: DecisionSpace,
    plan: CompressionPlan,
    calibration: Calibration,
    *,
    scores: Mapping[str, Tensor] | None = None,
    counts: Mapping[str, Tensor] | None = None,
) -> Compressed:
    """Compress a copy of the network as a plan says; the input model is left untouched.

    Args:
        space: what can be decided about the network, and by which methods.
        plan: amounts by site; sites that it does not name are left alone.
        calibration: statistics of the dense network.
        scores: the result of `score_units` for the same network and criterion, if it is at hand.
        counts: group -> units that run for each calibration image, int64 [images], while gates and weights
            are fitted; other groups run as many as the plan says.

    Raises:
        PlanError: the plan asks for what the network cannot do.
        UnknownNameError: the plan names an unknown site, or the method an unknown part.
    """
    dense, graph, method = space.subject.model, space.subject.graph, space.subject.method
    levels = space.levels(plan)
    scores = scores or score_units(dense, graph, calibration, criterion=method.criterion)
    work = Work(dense, graph, method, levels, calibration, scores, counts or {})
    model = copy.deepcopy(dense)
    for stage in Stage:
        for technique in space.staged:
            if stage in technique.steps:
                model = technique.steps[stage](model, work)
        if stage is Stage.FINISH:
            _finish_(model, work)
    gained = (
        name
        for name in work.graph.layers
        if model.get_submodule(name).bias is not None and dense.get_submodule(name).bias is None
    )
    return Compressed(model, work.records, tuple(gained), levels)


def _finish_(model: nn.Module, work: Work) -> None:
    """Let the compensation change the weights of the cut network, with its gates at work."""
    finish_ = COMPENSATIONS[work.method.compensation].finish_
    if finish_ is not None and (work.cuts or work.executed):
        with _attached(model, work.gates):
            finish_(model, work.planned)


@contextmanager
def _attached(model: nn.Module, gates: RuntimeGates | None) -> Iterator[None]:
    if gates is not None:
        attach_gates_(model, gates)
    try:
        yield
    finally:
        detach_gates_(model)


def rebuild_(
    model: nn.Module,
    input_shape: Sequence[int],
    records: Mapping[str, Any],
    biases: Iterable[str],
    *,
    largest: int = MAX_ENTRIES,
) -> nn.Module:
    """Repeat on a fresh dense network what records say, in place; return the network to use.

    Args:
        model: the dense network, its weights untrained: those of the compressed one are loaded afterwards.
        input_shape: the shape of one image.
        records: technique -> what it did, see `Compressed`.
        biases: layers that gained one.
        largest: a record that asks for more entries is damaged.

    Raises:
        PruningError: a record does not fit the network.
        UnknownNameError: there is no such technique.
    """
    kinds = sorted((TECHNIQUES[name] for name in records), key=lambda kind: kind.stage)
    traced = any(record.get("form") == "graph" for record in records.values())
    rebuilding = Rebuilding(model, find_groups(model, input_shape) if traced else None, largest)
    try:
        for name in biases:
            layer: Any = model.get_submodule(name)
            layer.bias = nn.Parameter(torch.zeros(axis_size(model, name, "out")))
    except AttributeError as error:
        raise PruningError(f"the recorded biases do not fit {type(model).__name__}: {error}") from error
    for kind in kinds:
        kind.rebuild_(rebuilding, records[kind.name])
    return rebuilding.model


def score_units(
    model: nn.Module, graph: ChannelGraph, calibration: Calibration, *, criterion: str
) -> dict[str, Tensor]:
    """Return the scores of every prunable group's units, [units] each; they depend on no plan."""
    return {group.name: CRITERIA[criterion](model, group, calibration) for group in graph.prunable}
