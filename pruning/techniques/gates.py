"""Runtime pruning: a gate chooses for each input which of a group's units run."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunegym.pruning.compensation import COMPENSATIONS
from prunegym.pruning.graph.sites import Site
from prunegym.pruning.plan import Amount, kept_units
from prunegym.pruning.products import FLOAT_BITS, Axes, Factor, Quantities, Term
from prunegym.pruning.runtime.fitting import cut_gates, fit_gates_, gate_site
from prunegym.pruning.runtime.gates import GateSite, RuntimeGates, attach_gates_, detach_gates_, gates_of
from prunegym.pruning.runtime.per_input import PerInputPolicy, find_per_input_policy
from prunegym.pruning.technique import (
    TECHNIQUES,
    Foresight,
    Levels,
    Rebuilding,
    Stage,
    Step,
    Subject,
    Technique,
    Work,
)


@TECHNIQUES.register("gates")
class Gates(Technique):
    """Skips units of a channel group for each input; a level is the number of units that run."""

    name = "gates"
    key = "runtime_ratio"
    stage = Stage.ATTACH
    limit = 0.5
    statistics = ("moments", "pooled", "magnitudes", "means", "rows")
    help = "share of the channels kept that a gate skips for each input"

    def __init__(self, subject: Subject, sites: tuple[Site, ...]) -> None:
        super().__init__(subject, sites)
        self._groups = subject.graph.prunable
        position = {site.name: index for index, site in enumerate(sites)}
        placed = [number for number, group in enumerate(self._groups) if group.name in position]
        self._placed = np.array(placed, dtype=np.int64)  # the groups that are sites
        self._at = np.array([position[self._groups[number].name] for number in placed], dtype=np.int64)
        self._units = np.array([site.group.units if site.group else 1 for site in sites], dtype=np.int64)
        self._axes = Axes(subject.graph)

    @classmethod
    def refusals(cls, subject: Subject) -> Mapping[str, str]:
        """See Technique: a site needs a prunable group that takes a gate."""
        reasons = {}
        for site in subject.sites:
            if site.group is None:
                reasons[site.name] = "it has no prunable channel group"
            elif site.group.ungated:
                reasons[site.name] = site.group.ungated
        return reasons

    @classmethod
    def coordinate(cls, decision: Mapping[str, Amount]) -> float:
        """See Technique: the share of all units that do not run, removed ones included."""
        return 1.0 - (1.0 - decision.get("static_ratio", 0.0)) * (1.0 - decision.get(cls.key, 0.0))

    def levels(self, site: int, earlier: Mapping[str, int]) -> Sequence[int]:
        """See Technique: from 1 to all units that are kept."""
        return range(1, self.neutral_level(site, earlier) + 1)

    def level(self, site: int, amount: Amount, earlier: Mapping[str, int]) -> int:
        """See Technique."""
        return kept_units(self.neutral_level(site, earlier), amount)

    def amount(self, site: int, level: int, earlier: Mapping[str, int]) -> Amount:
        """See Technique."""
        return 1 - level / self.neutral_level(site, earlier)

    def neutral_level(self, site: int, earlier: Mapping[str, int]) -> int:
        """See Technique: the units that are kept; 1 where there is no group."""
        return earlier.get("channels", int(self._units[site]))

    def compression(self, levels: Levels) -> NDArray[np.float64]:
        """See Technique."""
        return 1.0 - levels[self.name] / levels.get("channels", self._units)

    def quantities(self, levels: Levels, known: Quantities) -> Quantities:
        """See Technique: the units that run for an input, and 1 for each group with a gate."""
        executed = known["kept"].copy()
        executed[self._placed] = levels[self.name][self._at]
        return {"executed": executed, "gated": (executed < known["kept"]).astype(np.int64)}

    def priced(self, measure: str, terms: list[Term]) -> list[Term]:
        """See Technique: adds what the gates themselves cost; see `RuntimeGate` for their tensors."""
        per_entry = {"macs": 1.0, "params": 1.0, "bytes": _bytes(self.subject), "bops": FLOAT_BITS**2}
        factor = per_entry.get(measure)
        if factor is None:
            return terms
        gates = []
        for group, flag in zip(self._groups, np.eye(len(self._groups)), strict=True):
            writer = self.subject.graph.layers[group.layers[0]]
            there, units = Factor("gated", 0.0, flag), Factor("kept", 0.0, flag)
            inputs = Factor("kept", *self._axes.positions(writer.name, "in", writer.cin))
            gates.append(Term(writer.name, "gate", factor, (there, inputs, units)))
            if measure in ("params", "bytes"):  # its biases, and the fills of its readers
                gates.append(Term(writer.name, "gate", factor, (there, units)))
                gates += [
                    Term(reader.owner, "gate", factor * len(reader.channels[0]), (there, units))
                    for reader in group.readers
                ]
        return [*terms, *gates]

    def foreseen(self, foresight: Foresight, levels: Levels) -> NDArray[np.float64]:
        """See Technique; where channels are removed as well, that technique counts both."""
        if "channels" in levels:
            return np.zeros(len(self.sites))
        return foresight.reader_losses(levels[self.name])

    @property
    def steps(self) -> Mapping[Stage, Step]:
        """See Technique."""
        return {Stage.SELECT: self._select, Stage.COMPENSATE: _fit_, Stage.ATTACH: _attach_}

    @classmethod
    def rebuild_(cls, rebuilding: Rebuilding, record: Any) -> None:
        """See Technique."""
        sites = tuple(GateSite.from_dict(gate) for gate in record["sites"])
        if len({site.group for site in sites}) < len(sites):
            raise ValueError("two of its gates are of one group")
        for site in sites:
            site.check_fit(rebuilding.model)
        with torch.device("meta"):  # a record can ask for any size: no memory is taken before it is checked
            gates = RuntimeGates(sites)
            if record["per_input"] is not None:
                ratios = PerInputPolicy.from_dict(gates.sites, record["per_input"])
                ratios.requires_grad_(False).attach_(gates)
        entries = sum(tensor.numel() for tensor in gates.state_dict().values())
        if entries > rebuilding.largest:
            raise ValueError(f"its gates have {entries} entries, the weights file {rebuilding.largest} bytes")
        attach_gates_(rebuilding.model, gates.to_empty(device="cpu"))

    @classmethod
    def recorded(cls, model: nn.Module, record: Any) -> Any:
        """See Technique: the gates that the network has now; a policy may decide for them since."""
        gates = gates_of(model)
        if gates is None:
            return None
        ratios = find_per_input_policy(gates)
        return {"sites": [site.to_dict() for site in gates.sites], "per_input": ratios and ratios.to_dict()}

    @classmethod
    def to_export_(cls, model: nn.Module, compressed: nn.Module) -> Mapping[str, Any]:
        """See Technique: gates become masks, which compute skipped units as well."""
        gates = gates_of(copy.deepcopy(compressed))
        if gates is not None:
            attach_gates_(model, gates)
        return {"gates": gates and "masked"}

    def _select(self, model: nn.Module, work: Work) -> nn.Module:
        kept = work.levels.get("channels", self._units)
        alive = {group.name for group in work.graph.groups}
        work.executed = {
            site.name: int(runs)
            for site, runs, count in zip(self.sites, work.levels[self.name], kept, strict=True)
            if runs < count and site.name in alive
        }
        return model


def _bytes(subject: Subject) -> float:
    """Return the bytes of an entry of a gate's tensors: they take the type of the network's parameters."""
    return float(next(subject.model.parameters()).element_size())


def _fit_(model: nn.Module, work: Work) -> nn.Module:
    """Fit gates, and the layers that read through them, before the cut; they are attached at the end."""
    planned = work.planned
    sites = (gate_site(model, work.graph.group(name), runs) for name, runs in planned.executed.items())
    gates = RuntimeGates(tuple(sites))
    for group, by_image in work.counts.items():
        gates.gate_for(group).count_of = partial(_of_first_images, by_image)
    attach_gates_(model, gates)
    fit_gates_(model, gates, planned.kept, planned.cuts, planned.calibration)
    compensation = COMPENSATIONS[work.method.compensation]
    if gates.sites and compensation.gated_ is not None:
        compensation.gated_(model, planned)
    detach_gates_(model)
    work.gates = cut_gates(gates, planned.kept, planned.cuts)
    return model


def _attach_(model: nn.Module, work: Work) -> nn.Module:
    if work.gates is not None and work.gates.sites:
        attach_gates_(model, work.gates)
    return model


def _of_first_images(counts: Tensor, pooled: Tensor, scores: Tensor) -> Tensor:
    """Return the counts of as many images as take part in a fit: they are the first ones."""
    return counts[: len(pooled)].to(pooled.device)
