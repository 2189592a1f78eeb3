"""Depth: whole residual blocks are removed; their input takes the place of their output."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from prunegym.pruning.calibration import blocks as _  # noqa: F401  # registers the statistic
from prunegym.pruning.compensation.blocks import refit_after_blocks_
from prunegym.pruning.errors import PlanError, PruningError
from prunegym.pruning.graph.blocks import ResidualBlock, find_blocks, inside, without_blocks
from prunegym.pruning.graph.sites import Site
from prunegym.pruning.plan import Amount
from prunegym.pruning.products import Factor, Quantities, Term
from prunegym.pruning.surgery.equalization import replace_module_
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

REMOVED, PRESENT = 0, 1  # the levels


@TECHNIQUES.register("depth")
class Depth(Technique):
    """Removes residual blocks; it decides about a block at the first site within it.

    The loss that it foresees is the share of the block's output that no linear map of its input explains, see
    `ReplacementLosses`. The layers that read the trunk after a removed block are refitted, unless there is to
    be no compensation at all.
    """

    name = "depth"
    key = "depth"
    stage = Stage.SELECT
    limit = 1.0
    statistics = ("blocks",)
    feature_names = ("loss",)
    help = "1 removes the residual block that begins at a site, 0 leaves it"

    def __init__(self, subject: Subject, sites: tuple[Site, ...]) -> None:
        super().__init__(subject, sites)
        position = {site.name: index for index, site in enumerate(sites)}
        begins = {name: block for name, block in _first_sites(subject).items() if name in position}
        self.blocks = tuple(begins.values())
        self._at = np.array([position[name] for name in begins], dtype=np.int64)  # [blocks]
        self._block_of = {
            index: number
            for index, site in enumerate(sites)
            for number, block in enumerate(self.blocks)
            if inside(block.name, _layer(site))
        }
        self._layers = np.array(
            [[layer in block.layers for layer in subject.graph.layers] for block in self.blocks],
            dtype=np.int64,
        )  # [blocks, layers]

    @classmethod
    def refusals(cls, subject: Subject) -> Mapping[str, str]:
        """See Technique: a residual block must begin at the site."""
        begins, refused = _first_sites(subject), subject.blocks.refused
        reasons = {}
        for site in subject.sites:
            if site.name not in begins:
                around = [name for name in refused if inside(name, _layer(site))]
                why = f": {around[-1]} must stay, {refused[around[-1]]}" if around else ""
                reasons[site.name] = f"no residual block that can go begins there{why}"
        return reasons

    @classmethod
    def check(cls, amount: Amount, where: str) -> None:
        """See Technique."""
        if not 0.0 <= amount <= 1.0:
            raise PlanError(
                f"{where}: depth must be 1, to remove the block, or 0, to leave it; got {amount!r}"
            )

    def levels(self, site: int, earlier: Mapping[str, int]) -> Sequence[int]:
        """See Technique."""
        return (REMOVED, PRESENT)

    def level(self, site: int, amount: Amount, earlier: Mapping[str, int]) -> int:
        """See Technique; from one half on the block goes."""
        return REMOVED if amount >= 0.5 else PRESENT

    def amount(self, site: int, level: int, earlier: Mapping[str, int]) -> Amount:
        """See Technique."""
        return float(PRESENT - level)

    def neutral_level(self, site: int, earlier: Mapping[str, int]) -> int:
        """See Technique."""
        return PRESENT

    def compression(self, levels: Levels) -> NDArray[np.float64]:
        """See Technique."""
        return (PRESENT - levels[self.name]).astype(np.float64)

    def closes(self, site: int, levels: Levels) -> bool:
        """See Technique: in a removed block there is nothing left to decide."""
        number = self._block_of.get(site)
        return number is not None and levels[self.name][self._at[number]] == REMOVED

    def quantities(self, levels: Levels, known: Quantities) -> Quantities:
        """See Technique: which blocks, and with them which layers, are there."""
        there = levels[self.name][self._at]
        return {"blocks": there, "present": known["present"] - (1 - there) @ self._layers}

    def priced(self, measure: str, terms: list[Term]) -> list[Term]:
        """See Technique: what lies in a block costs something while the block is there."""
        return [self._within(term) for term in terms]

    def features(self, foresight: Foresight) -> Mapping[str, NDArray[np.float64]]:
        """See Technique: the loss that is foreseen if the block that begins at the site goes."""
        losses = np.zeros(len(self.sites))
        known = foresight.calibration["blocks"]
        losses[self._at] = [known.get(block.name, 1.0) for block in self.blocks]
        return {"loss": losses}

    def foreseen(self, foresight: Foresight, levels: Levels) -> NDArray[np.float64]:
        """See Technique."""
        return self.features(foresight)["loss"] * self.compression(levels)

    @property
    def steps(self) -> Mapping[Stage, Step]:
        """See Technique."""
        return {Stage.SELECT: self._remove_}

    @classmethod
    def rebuild_(cls, rebuilding: Rebuilding, record: Any) -> None:
        """See Technique."""
        names = [str(name) for name in record["blocks"]]
        model, graph = rebuilding.model, rebuilding.graph
        if graph is not None:
            known = {block.name: block for block in find_blocks(model, graph).blocks}
            rebuilding.graph = without_blocks(graph, [known[name] for name in names])
        try:
            # without weights it is no block: the weights file would not tell that it is there
            bare = [name for name in names if not list(model.get_submodule(name).parameters())]
            if bare:
                raise AttributeError(f"{bare[0]!r} holds no weights")
            drop_blocks_(model, names)
        except AttributeError as error:
            raise PruningError(f"the recorded blocks do not fit {type(model).__name__}: {error}") from error

    def _remove_(self, model: nn.Module, work: Work) -> nn.Module:
        there = work.levels[self.name][self._at]
        gone = [block for block, level in zip(self.blocks, there, strict=True) if level == REMOVED]
        if not gone:
            return model
        drop_blocks_(model, [block.name for block in gone])
        shorter = without_blocks(work.graph, gone)
        if work.method.compensation != "none":
            refit_after_blocks_(model, work.dense, work.graph, shorter, work.calibration.inputs, gone)
        # to all that follows, this is the dense network
        work.dense, work.graph = copy.deepcopy(model), shorter
        work.records[self.name] = {"blocks": [block.name for block in gone]}
        return model

    def _within(self, term: Term) -> Term:
        for flag, block in zip(np.eye(len(self.blocks)), self.blocks, strict=True):
            if inside(block.name, f"{term.owner}."):
                return term.times(1.0, Factor("blocks", 0.0, flag))
        return term


def drop_blocks_(model: nn.Module, names: Sequence[str]) -> None:
    """Replace blocks by modules that pass their input on, in place."""
    for name in names:
        replace_module_(model, name, nn.Identity())


def _layer(site: Site) -> str:
    """Return the layer at which a site begins."""
    return site.group.layers[0] if site.group else str(site.layer)


def _first_sites(subject: Subject) -> dict[str, ResidualBlock]:
    """Return, for each block, the site that decides about it: the first one within it."""
    found: dict[str, ResidualBlock] = {}
    for block in subject.blocks.blocks:
        within = [site.name for site in subject.sites if inside(block.name, _layer(site))]
        if within:
            found[within[0]] = block
    return found
