"""Prices of plans by arithmetic, exactly as they are counted on the network once it is compressed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from prunegym.pruning.decisions import DecisionSpace
from prunegym.pruning.graph import ChannelGraph
from prunegym.pruning.measures import MEASURES
from prunegym.pruning.products import FLOAT_BITS, Axes, Counts, Factor, Quantities, Term, sum_of
from prunegym.pruning.runtime.prices import InputPrices
from prunegym.pruning.surgery.cutting import bare_tensor
from prunegym.pruning.technique import Levels

TABULATED = ("macs", "params", "bytes", "bops")  # measures whose prices are sums of products

# nanoseconds, from the units kept of each group, [groups], and 1 for each layer that is there, [layers]
LatencyPrice: TypeAlias = Callable[[Counts, Counts], int]


class CostModel:
    """Prices of plans on one network.

    Args:
        space: what can be decided about the network.
        latency: its latency by a table; without it latency has no price.
    """

    def __init__(self, space: DecisionSpace, *, latency: LatencyPrice | None = None) -> None:
        self.space = space
        self.latency = latency
        graph, model = space.subject.graph, space.subject.model
        self._groups = graph.prunable
        self._units = np.array([group.units for group in self._groups], dtype=np.int64)
        self._present = np.ones(len(graph.layers), dtype=np.int64)
        self._terms = dense_terms(model, graph)
        for technique in space.techniques:
            self._terms = {name: technique.priced(name, terms) for name, terms in self._terms.items()}
        used = {
            factor.quantity for terms in self._terms.values() for term in terms for factor in term.factors
        }
        dense = self.quantities(self.dense)
        self._columns = tuple(name for name in dense if name in used)
        ends = np.cumsum([len(dense[name]) for name in self._columns]).tolist()
        self._slices = {
            name: slice(end - len(dense[name]), end) for name, end in zip(self._columns, ends, strict=True)
        }
        self._sums = {name: sum_of(terms, self._slices) for name, terms in self._terms.items()}

    @property
    def dense(self) -> Levels:
        """The levels of the network before it is compressed."""
        return self.space.neutral

    @cached_property
    def prices(self) -> tuple[str, ...]:
        """The measures that have a price."""
        return tuple(name for name, measure in MEASURES.items() if measure.lacking(self) is None)

    def price(self, measure: str, levels: Levels) -> int:
        """Return what a plan costs by a measure in MEASURES, in its unit.

        Raises:
            BudgetError: the measure has no price here.
            UnknownNameError: there is no such measure.
        """
        return MEASURES[measure].price(self, self.quantities(levels))

    def shares(self, levels: Levels, measures: Iterable[str] | None = None) -> dict[str, float]:
        """Return the shares of the dense network that a plan leaves, by priced measures; None: all."""
        quantities = self.quantities(levels)
        names = self.prices if measures is None else measures
        return {name: MEASURES[name].price(self, quantities) / self._dense_prices[name] for name in names}

    def quantities(self, levels: Levels) -> Quantities:
        """Return what prices depend on, as the techniques in use give it for a plan."""
        found: dict[str, NDArray[np.int64]] = {"kept": self._units, "present": self._present}
        for technique in self.space.staged:
            found |= technique.quantities(levels, found)
        found.setdefault("executed", found["kept"])
        return found

    def total(self, measure: str, quantities: Quantities) -> int:
        """Return the sum of products of a measure in TABULATED."""
        return round(self._sums[measure](self._vector(quantities)))

    def input_prices(self, levels: Levels) -> InputPrices:
        """Return the prices of single inputs under a plan; the groups that it gates are gated for each.

        Their counts are those of the gated groups, in their order.
        """
        quantities = self.quantities(levels)
        x = self._vector(quantities)
        some = np.zeros(len(x), dtype=bool)
        some[self._slices["executed"]] = quantities["executed"] < quantities["kept"]
        rest = self._sums["macs"].restricted_to(some, x)
        varies = (rest.slopes != 0).any(axis=(0, 2))
        gated = rest.rows(varies).folded()
        fixed = round(rest.rows(~varies)(x[some]))
        return InputPrices(self.price("macs", self.dense), fixed, gated)

    def vanishing_shares(self, measure: str) -> NDArray[np.float64]:
        """Return, for each site, the share of a dense price that is saved if it vanished: [sites].

        With a group its channels vanish, with a layer alone its work and its tensors. All 0 where the measure
        has no price.
        """
        if MEASURES[measure].lacking(self) is not None:
            return np.zeros(len(self.space.sites))
        dense = self.quantities(self.dense)
        whole = MEASURES[measure].price(self, dense)
        groups = np.array([group.name for group in self._groups])
        layers = np.array(list(self.space.subject.graph.layers))
        saved = []
        for index, site in enumerate(self.space.sites):
            if site.group is None:
                owned = [term for term in self._terms.get(measure, ()) if term.owner == site.layer]
                without = {**dense, "present": np.where(layers == site.layer, 0, dense["present"])}
                left = whole - sum_of(owned, self._slices)(self._vector(dense))
                saved.append(1 - (left if owned else MEASURES[measure].price(self, without)) / whole)
            else:
                levels = {name: of_sites.copy() for name, of_sites in self.dense.items()}
                for name in levels.keys() & {"channels", "gates"}:
                    levels[name][index] = 0
                units = np.where(groups == site.name, 0, self._units)
                without = {**self.quantities(levels), "kept": units, "executed": units}
                saved.append(1 - MEASURES[measure].price(self, without) / whole)
        return np.array(saved)

    @cached_property
    def _dense_prices(self) -> dict[str, int]:
        return {name: self.price(name, self.dense) for name in self.prices}

    def _vector(self, quantities: Quantities) -> NDArray[np.int64]:
        return np.concatenate([quantities[name] for name in self._columns])


def dense_terms(model: nn.Module, graph: ChannelGraph) -> dict[str, list[Term]]:
    """Return the terms of a network's prices by measure, in units kept and executed of each group."""
    axes = Axes(graph)
    work = [*_work(graph, axes), Term("", "work", float(graph.other_macs))]
    bare = {member.owner: member.axis for group in graph.groups for member in group.parameters}
    parameters = {name for name, _ in model.named_parameters()}
    stored = {
        name: _stored(graph, axes, name, tensor, bare)
        for name in (*parameters, *model.state_dict())
        if isinstance(tensor := bare_tensor(model, name), Tensor)
    }
    return {
        "macs": work,
        "params": [term for name, term in stored.items() if name in parameters],
        "bytes": [stored[name].times(bare_tensor(model, name).element_size()) for name in model.state_dict()],
        "bops": [term.times(FLOAT_BITS**2) for term in work],
    }


def _work(graph: ChannelGraph, axes: Axes) -> list[Term]:
    """Return the multiply-adds of each layer; a depthwise one reads one channel for each that it writes."""
    terms = []
    for layer in graph.layers.values():
        factors = [Factor("executed", *axes.positions(layer.name, "out", layer.cout))]
        applied = float(layer.positions * layer.kernel)
        if not layer.depthwise:
            factors.insert(0, Factor("executed", *axes.positions(layer.name, "in", layer.cin)))
            applied /= layer.conv_groups
        terms.append(Term(layer.name, "work", applied, tuple(factors)))
    return terms


def _stored(graph: ChannelGraph, axes: Axes, name: str, tensor: Tensor, bare: dict[str, int]) -> Term:
    """Return the entries of a parameter or buffer."""
    owner, _, attribute = name.rpartition(".")
    if name in bare:
        size = tensor.size(bare[name])
        along = Factor("kept", *axes.positions(name, "parameter", size))
        return Term(name, "parameter", tensor.numel() / size, (along,))
    layer = graph.layers.get(owner)
    if layer is not None and attribute == "weight":
        factors = [Factor("kept", *axes.positions(owner, "out", layer.cout))]
        if not layer.depthwise:
            factors.insert(0, Factor("kept", *axes.positions(owner, "in", layer.cin)))
        dense = layer.cout * (1 if layer.depthwise else layer.cin)
        return Term(owner, "weight", tensor.numel() / dense, tuple(factors))
    if tensor.dim() == 1:
        return Term(owner, "bias", 1.0, (Factor("kept", *axes.positions(owner, "out", len(tensor))),))
    return Term(owner, "buffer", float(tensor.numel()))


def count_params(model: nn.Module) -> int:
    """Count the parameters of a network as it stands."""
    return sum(parameter.numel() for parameter in model.parameters())
