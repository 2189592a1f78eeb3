"""Static pruning: units of a group of coupled channels are removed for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from prunegym.pruning.compensation import COMPENSATIONS
from prunegym.pruning.criteria import select
from prunegym.pruning.graph import LayerShape
from prunegym.pruning.graph.sites import Site
from prunegym.pruning.plan import Amount, kept_units
from prunegym.pruning.products import Axes, Factor, Quantities, Term
from prunegym.pruning.surgery.cutting import TRANSPOSED, Structure, axis_cuts, bare_tensor, cut_, rebuild_
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


@TECHNIQUES.register("channels")
class Channels(Technique):
    """Removes units of a channel group; a level is the number of units kept, from 1 to all."""

    name = "channels"
    key = "static_ratio"
    stage = Stage.CUT
    limit = 0.9
    centred = True
    family = "widths"
    statistics = ("moments",)  # of the error curves that agents observe
    feature_names = ("error_25", "error_50", "error_75", "error_rank", "price_rank")
    help = "share of a group's channels that is removed"

    def __init__(self, subject: Subject, sites: tuple[Site, ...]) -> None:
        super().__init__(subject, sites)
        groups = subject.graph.prunable
        position = {site.name: index for index, site in enumerate(sites)}
        self._at = np.array([position[group.name] for group in groups], dtype=np.int64)  # [groups]
        self._units = np.array([site.group.units if site.group else 1 for site in sites], dtype=np.int64)
        self._round_to = subject.method.round_to
        self._touching = _gaining_biases(subject) if _shifts_bias(subject) else {}

    @classmethod
    def refusals(cls, subject: Subject) -> Mapping[str, str]:
        """See Technique: a site needs a prunable group."""
        return {site.name: "it has no prunable channel group" for site in subject.sites if site.group is None}

    def levels(self, site: int, earlier: Mapping[str, int]) -> Sequence[int]:
        """See Technique."""
        units = int(self._units[site])
        if self._round_to == 1:
            return range(1, units + 1)
        return [*range(self._round_to, units, self._round_to), units]

    def level(self, site: int, amount: Amount, earlier: Mapping[str, int]) -> int:
        """See Technique."""
        return kept_units(int(self._units[site]), amount, round_to=self._round_to)

    def amount(self, site: int, level: int, earlier: Mapping[str, int]) -> Amount:
        """See Technique."""
        return 1 - level / int(self._units[site])

    def neutral_level(self, site: int, earlier: Mapping[str, int]) -> int:
        """See Technique; 1 where there is no group."""
        return int(self._units[site])

    def compression(self, levels: Levels) -> NDArray[np.float64]:
        """See Technique."""
        return 1.0 - levels[self.name] / self._units

    def ladder(self, limit: Amount) -> Sequence[Amount]:
        """See Technique: 0, the limit, and every ratio between from which on some group loses a unit more."""
        # kept_units goes down just above (kept - 0.5) / count
        counts = {int(self._units[index]) for index in self._at}
        falls = [1.0 - (np.arange(1, count + 1) - 0.5) / count + 1e-9 for count in counts]
        ratios = np.unique(np.concatenate([[0.0, limit], *falls]))
        return [float(ratio) for ratio in ratios[ratios <= limit]]

    def quantities(self, levels: Levels, known: Quantities) -> Quantities:
        """See Technique: the units kept, and for each layer that may gain a bias whether it does."""
        kept = levels[self.name][self._at]
        if not self._touching:
            return {"kept": kept}
        cut = kept < self._units[self._at]
        gained = [cut[touched].any() for touched, *_ in self._touching.values()]
        return {"kept": kept, "gained_bias": np.array(gained, dtype=np.int64)}

    def priced(self, measure: str, terms: list[Term]) -> list[Term]:
        """See Technique: adds the biases that readers gain for the means of removed inputs."""
        if measure not in ("params", "bytes"):
            return terms
        flags = np.eye(len(self._touching))
        for flag, (name, (_, kept, size)) in zip(flags, self._touching.items(), strict=True):
            gained = Factor("gained_bias", 0.0, flag)
            terms = [*terms, Term(name, "bias", size if measure == "bytes" else 1.0, (gained, kept))]
        return terms

    def features(self, foresight: Foresight) -> Mapping[str, NDArray[np.float64]]:
        """See Technique: the loss of a group's readers by the error curve.

        The square root of their loss with a quarter, a half and three quarters of the group pruned; the share
        of sites with a smaller loss at one half; the share that saves fewer multiply-adds per loss there.
        """
        curves = foresight.error_curves  # at CURVE_RATIOS
        half = curves[:, 1]
        bargain = foresight.macs_shares / (half + 1e-6)
        roots = dict(zip(self.feature_names, np.sqrt(curves.T), strict=False))
        return {**roots, "error_rank": _rank(half), "price_rank": _rank(bargain)}

    def foreseen(self, foresight: Foresight, levels: Levels) -> NDArray[np.float64]:
        """See Technique: the loss of a group's readers without the units that are removed or skipped."""
        return foresight.reader_losses(levels.get("gates", levels[self.name]))

    @property
    def steps(self) -> Mapping[Stage, Step]:
        """See Technique."""
        return {Stage.SELECT: self._select, Stage.COMPENSATE: _compensate_, Stage.CUT: self._cut_}

    @classmethod
    def rebuild_(cls, rebuilding: Rebuilding, record: Any) -> None:
        """See Technique."""
        structure = Structure.from_dict(record)
        rebuilding.model = rebuild_(rebuilding.model, rebuilding.graph, structure)

    def _select(self, model: nn.Module, work: Work) -> nn.Module:
        alive = {group.name for group in work.graph.groups}
        for site, count in zip(self.sites, work.levels[self.name].tolist(), strict=True):
            if site.group is not None and count < site.group.units and site.name in alive:
                work.kept[site.name] = select(work.scores[site.name], count)
        work.cuts = axis_cuts(model, work.graph, work.kept)
        return model

    def _cut_(self, model: nn.Module, work: Work) -> nn.Module:
        model, structure = cut_(model, work.graph, work.kept)
        work.records[self.name] = structure.to_dict()
        return model


def _compensate_(model: nn.Module, work: Work) -> nn.Module:
    COMPENSATIONS[work.method.compensation].apply_(model, work.planned)
    return model


def _rank(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return, for each value, the share of values that are smaller."""
    return (values < values[:, None]).mean(1)


def needs_bias(model: nn.Module, layer: LayerShape) -> bool:
    """Return whether a shift of the layer's output would need a bias that it does not have."""
    module: Any = model.get_submodule(layer.name)
    refitted = not isinstance(module, TRANSPOSED)  # calibration keeps no moments of their inputs
    return refitted and module.bias is None and layer.batch_norm is None


def _shifts_bias(subject: Subject) -> bool:
    return COMPENSATIONS[subject.method.compensation].shifts_bias


def _gaining_biases(subject: Subject) -> dict[str, tuple[NDArray[np.bool_], Factor, float]]:
    """Return the readers that may gain a bias, each with (groups it reads, outputs, bytes of an entry)."""
    axes, found = Axes(subject.graph), {}
    for layer in subject.graph.layers.values():
        if needs_bias(subject.model, layer):
            touched = axes.positions(layer.name, "in", layer.cin)[1] > 0
            outputs = Factor("kept", *axes.positions(layer.name, "out", layer.cout))
            size = bare_tensor(subject.model, f"{layer.name}.weight").element_size()
            found[layer.name] = touched, outputs, float(size)
    return found
