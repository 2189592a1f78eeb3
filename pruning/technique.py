"""Techniques: kinds of compression. A registry: add one module to add a technique."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, auto
from functools import cached_property
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from prunegym.pruning.calibration.statistics import Calibration
from prunegym.pruning.compensation.records import PlannedCut
from prunegym.pruning.errors import PlanError
from prunegym.pruning.graph import ChannelGraph
from prunegym.pruning.graph.blocks import BlockSearch, find_blocks
from prunegym.pruning.graph.sites import Site, find_sites
from prunegym.pruning.method import Method
from prunegym.pruning.plan import Amount
from prunegym.pruning.products import Counts, Quantities, Term
from prunegym.pruning.registry import Registry
from prunegym.pruning.runtime.gates import RuntimeGates
from prunegym.pruning.surgery.cutting import AxisCut

Levels: TypeAlias = Mapping[str, Counts]  # technique -> its level at each site: [sites]

CURVE_RATIOS = (0.25, 0.5, 0.75)  # static ratios at which error curves are known


class Stage(IntEnum):
    """The order in which techniques decide and are carried out."""

    SELECT = auto()  # what goes is chosen
    COMPENSATE = auto()  # what stays makes up for it
    CUT = auto()
    FACTORISE = auto()
    SPARSIFY = auto()
    FINISH = auto()  # compensations that run the network
    FUSE = auto()
    QUANTISE = auto()  # no weight changes after this
    ATTACH = auto()  # fitted gates are put in place


@dataclass(frozen=True, eq=False)
class Subject:
    """A dense network that plans are made for, and how they are applied to it."""

    model: nn.Module
    graph: ChannelGraph
    method: Method

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """The sites of the network, whichever techniques are on."""
        return find_sites(self.graph)

    @cached_property
    def blocks(self) -> BlockSearch:
        """The residual blocks of the network."""
        return find_blocks(self.model, self.graph)


@dataclass(frozen=True)
class Foresight:
    """What calibration tells of the sites of a network before any plan is applied."""

    units: Counts  # of each site's group, 1 without one: [sites]
    # loss of its readers at CURVE_RATIOS, 0 without a group: [sites, ratios]
    error_curves: NDArray[np.float64]
    macs_shares: NDArray[np.float64]  # of the dense MACs, saved if the site vanished: [sites]
    calibration: Calibration

    def reader_losses(self, running: Counts) -> NDArray[np.float64]:
        """Return the loss of each site's readers, by its error curve, if only so many units run: [sites]."""
        ratios = [0.0, *CURVE_RATIOS, 1.0]
        pruned = 1.0 - running / self.units
        curves = np.pad(self.error_curves, ((0, 0), (1, 1)), constant_values=((0, 0), (0, 1)))
        losses = [np.interp(share, ratios, curve) for share, curve in zip(pruned, curves, strict=True)]
        return np.array(losses)


@dataclass
class Work:
    """A plan that is being carried out: what the techniques have found so far and hand on to each other."""

    dense: nn.Module  # left as it is; a technique that reshapes the whole network replaces it and `graph`
    graph: ChannelGraph
    method: Method
    levels: Levels
    calibration: Calibration
    scores: Mapping[str, Tensor]  # group -> scores of its units, [units]
    counts: Mapping[str, Tensor]  # group -> units that run for each calibration image while gates are fitted
    kept: dict[str, Tensor] = field(default_factory=dict)  # groups that stay whole are not named
    cuts: tuple[AxisCut, ...] = ()
    executed: Mapping[str, int] = field(default_factory=dict)  # groups without a gate are not named
    gates: RuntimeGates | None = None  # fitted, to be attached
    records: dict[str, Any] = field(default_factory=dict)  # technique -> enough to rebuild what it did

    @property
    def planned(self) -> PlannedCut:
        """The cut that compensations make up for."""
        return PlannedCut(self.dense, self.graph, self.kept, self.cuts, self.calibration, self.executed)


@dataclass
class Rebuilding:
    """A compressed network that is being rebuilt from its records."""

    model: nn.Module  # at first fresh and dense
    graph: ChannelGraph | None  # of the dense network, where a record is of the form "graph"
    largest: int  # bytes of the weights file: a record that asks for more entries is damaged


Step: TypeAlias = Callable[[nn.Module, Work], nn.Module]  # returns the model to go on with; may change it


class Technique(ABC):
    """One kind of compression on one network.

    At each site where it can decide it has *levels*: whole numbers, ascending in cost, the last one neutral,
    which means that nothing is compressed. An *amount* is the same decision in the unit that users see. The
    levels at a site may depend on those of techniques of earlier stages there.

    Args:
        subject: the dense network.
        sites: the sites at which at least one technique that is on can decide: one entry of `Levels` each.
    """

    name: ClassVar[str]  # in the registry, in `Levels` and in records
    key: ClassVar[str]  # of amounts in plans, of flags, actions and features
    stage: ClassVar[Stage]  # in the order of which techniques decide at a site and are rebuilt
    neutral: ClassVar[Amount] = 0.0
    limit: ClassVar[Amount]  # the farthest amount, unless the user sets another
    centred: ClassVar[bool] = False  # whether an action of 0 means the even plan, rather than no compression
    family: ClassVar[str | None] = None  # of techniques that the even plan of a budget uses, see `ladder`
    statistics: ClassVar[tuple[str, ...]] = ()  # that calibration is to collect
    feature_names: ClassVar[tuple[str, ...]] = ()  # of `features`
    help: ClassVar[str]  # what the amount is, for a list of flags

    def __init__(self, subject: Subject, sites: tuple[Site, ...]) -> None:
        self.subject = subject
        self.sites = sites

    @classmethod
    @abstractmethod
    def refusals(cls, subject: Subject) -> Mapping[str, str]:
        """Return why the technique cannot decide: site -> reason, for the `subject.sites` where it cannot."""

    @classmethod
    def check(cls, amount: Amount, where: str) -> None:
        """Refuse an amount that makes no sense on any network; by default one outside of [0, 1).

        Raises:
            PlanError: it does not; the message begins with `where`.
        """
        if not 0.0 <= amount < 1.0:
            raise PlanError(
                f"{where}: {cls.key} must lie in [0, 1), got {amount!r}; "
                "ratios are shares pruned: to keep 70 % of the channels write 0.3"
            )

    @abstractmethod
    def levels(self, site: int, earlier: Mapping[str, int]) -> Sequence[int]:
        """Return the levels at a site where the technique can decide, ascending, the last one neutral.

        Args:
            site: its index.
            earlier: technique -> level at this site, of techniques of earlier stages.
        """

    @abstractmethod
    def level(self, site: int, amount: Amount, earlier: Mapping[str, int]) -> int:
        """Return the level nearest to an amount at a site where the technique can decide."""

    @abstractmethod
    def amount(self, site: int, level: int, earlier: Mapping[str, int]) -> Amount:
        """Return the amount of a level: `level` of it is the level again."""

    @abstractmethod
    def neutral_level(self, site: int, earlier: Mapping[str, int]) -> int:
        """Return the level that compresses nothing, also at sites where the technique cannot decide."""

    @abstractmethod
    def compression(self, levels: Levels) -> NDArray[np.float64]:
        """Return how far each site is compressed, from 0, not at all, to 1: [sites]."""

    @classmethod
    def coordinate(cls, decision: Mapping[str, Amount]) -> float:
        """Return where a site's decision, key -> amount, lies in a space in which plans are compared."""
        return cls.scaled(decision.get(cls.key, cls.neutral))

    @classmethod
    def scaled(cls, amount: Amount) -> float:
        """Return how far an amount compresses, from 0, not at all, to 1; by default the amount itself."""
        return amount

    def ladder(self, limit: Amount) -> Sequence[Amount]:
        """Return the amounts, from the least compression to the most, that an even plan can take everywhere.

        Techniques of one family climb their ladders together, and these must then have one length.
        """
        return (self.neutral,)

    def closes(self, site: int, levels: Levels) -> bool:
        """Return whether levels decided so far leave nothing for other techniques to decide at a site."""
        return False

    def quantities(self, levels: Levels, known: Quantities) -> Quantities:
        """Return the quantities that terms of prices refer to, given those of techniques of earlier stages.

        Known from the beginning are "kept", the units of each prunable group, and "present", 1 for each
        layer.
        """
        return {}

    def priced(self, measure: str, terms: list[Term]) -> list[Term]:
        """Return the terms of a measure's price with this technique on; it may add, change and drop terms."""
        return terms

    def features(self, foresight: Foresight) -> Mapping[str, NDArray[np.float64]]:
        """Return what is known of each site before any decision: feature -> [sites], each in [0, 1]."""
        return {}

    def foreseen(self, foresight: Foresight, levels: Levels) -> NDArray[np.float64]:
        """Return the loss that calibration foresees at each site: [sites], from 0, none, to 1, all."""
        return np.zeros(len(self.sites))

    @property
    def steps(self) -> Mapping[Stage, Step]:
        """What carries the technique out, by stage."""
        return {}

    @classmethod
    @abstractmethod
    def rebuild_(cls, rebuilding: Rebuilding, record: Any) -> None:
        """Repeat on a fresh dense network what a record says; values of tensors are loaded afterwards.

        Raises:
            PruningError: the record does not fit the network.
        """

    @classmethod
    def recorded(cls, model: nn.Module, record: Any) -> Any:
        """Return the record to save with a network, from that of when it was made; None: no record."""
        return record

    @classmethod
    def to_export_(cls, model: nn.Module, compressed: nn.Module) -> Mapping[str, Any]:
        """Prepare a network for export, in place, and return what a file's metadata should say of it.

        Args:
            model: a copy of the compressed network whose BatchNorms are fused and whose gates are detached.
            compressed: the network itself, left as it is.
        """
        return {}


TECHNIQUES: Registry[type[Technique]] = Registry("technique")
