"""The projection of decisions onto what the budget allows, and the even plan of a budget."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from prunegym.envs.budget import Budget, Limits
from prunegym.pruning.cost import CostModel
from prunegym.pruning.errors import BudgetError, ImpossibleBudgetError
from prunegym.pruning.measures import MEASURES
from prunegym.pruning.plan import Amount
from prunegym.pruning.products import Counts
from prunegym.pruning.technique import Levels, Technique

FAMILIES = ("widths", "bits")  # of techniques, in the order in which an even plan uses them


class BudgetProjection:
    """Projects each decision of an episode onto the decisions from which the budget can still be met.

    The *even plan* of a budget compresses all sites alike. Techniques form families, see FAMILIES. In turn,
    each family takes the least compression, the same everywhere, with which the families after it, at their
    most, can still meet the budget; techniques of no family compress nothing there.

    Args:
        cost: prices the network's plans.
        budget: shares of the dense network that may remain.
        limits: the farthest amounts at a site.

    Raises:
        BudgetError: a measure of the budget has no price.
        ImpossibleBudgetError: even with every family at its most everywhere a budget is not met.
    """

    def __init__(self, cost: CostModel, budget: Budget, limits: Limits) -> None:
        self.budget = budget
        self.limits = limits
        self.space = cost.space
        self._cost = cost
        for name in budget.shares:
            lacking = MEASURES[name].lacking(cost)
            if lacking is not None:
                raise BudgetError(f"budget {name}: it has no price here; {lacking}")
        self._ceilings = {  # whole numbers; the margin undoes the rounding of a share that was measured
            name: math.floor(share * cost.price(name, cost.dense) + 1e-6)
            for name, share in budget.shares.items()
        }
        self._ladders = ladders(cost, limits)
        self.most = {name: one for rungs in self._ladders for name, one in rungs[-1].items()}
        self.least: Levels = self.space.even_levels(self.most)  # every family at its most
        self._even: dict[tuple[tuple[str, Amount], ...], Levels] = {}  # amounts everywhere -> levels
        for name, share in cost.shares(self.least).items():
            if name in budget.shares and share > budget.shares[name]:
                raise ImpossibleBudgetError(
                    f"budget {name}={budget.shares[name]:g} cannot be reached: the smallest is "
                    f"{rounded_up(share)}, {self._farthest()}"
                )

    def fits(self, levels: Levels) -> bool:
        """Whether a plan meets the budget."""
        quantities = self._cost.quantities(levels)
        return all(
            MEASURES[name].price(self._cost, quantities) <= most for name, most in self._ceilings.items()
        )

    def even(self, step: int, decided: Levels) -> dict[str, Amount]:
        """Return the amounts, technique -> amount, of the even plan of this and all later sites.

        Args:
            step: number of sites decided.
            decided: levels of all sites, of which the first `step` count.
        """
        amounts = dict(self.most)
        for rungs in self._ladders:
            found = bisect_left(rungs, True, key=partial(self._fits_evenly, step, decided, amounts))
            amounts |= rungs[min(found, len(rungs) - 1)]
        return {one.name: amounts.get(one.name, one.neutral) for one in self.space.staged}

    def project(
        self, step: int, decided: Levels, target: Mapping[str, Amount], *, exhaust: bool = True
    ) -> dict[str, int]:
        """Return the levels nearest to the amounts asked for from which the budget can still be met.

        The techniques decide in the order of their stages. A finished plan is never above the budget. With
        one budget and all widths allowed it lies below it by at most one level of its last site (by more only
        where the sites to come cannot make up for one level of this one).

        Args:
            step: index of the site; those before it are decided.
            decided: levels of all sites, of which the first `step` count.
            target: technique -> amount asked for; those not named are neutral.
            exhaust: whether the budget is to be used up; else a plan may end anywhere below it.
        """
        here: dict[str, int] = {}
        trial = _Trial(self, step, decided, dict(target))
        for technique in self.space.staged:
            choices = self._choices(technique, step, here)
            if len(choices) == 1 or trial.closed(here):
                here[technique.name] = choices[-1]
                continue
            wanted = trial.level(technique, here)
            trial.drop_extras_beyond_(technique, {**here, technique.name: choices[0]})
            here[technique.name] = _settled(
                choices,
                wanted,
                partial(trial.reaches, here, technique.name),
                partial(trial.leaves_unused, here, technique.name) if exhaust else None,
            )
            exhaust = exhaust and here[technique.name] == choices[-1]
        return here

    def complete(self, target: Callable[[int, Mapping[str, Amount]], Mapping[str, Amount]]) -> Levels:
        """Return the levels of a whole plan, as near as the budget allows to the amounts for each site.

        Args:
            target: (site, amounts of the even plan from there on) -> technique -> amount.
        """
        levels = {name: of_sites.copy() for name, of_sites in self.space.neutral.items()}
        for step in range(len(self.space.sites)):
            here = self.project(step, levels, target(step, self.even(step, levels)))
            for name, level in here.items():
                levels[name][step] = level
        return levels

    def _fits_evenly(
        self, step: int, decided: Levels, amounts: Mapping[str, Amount], rung: Mapping[str, Amount]
    ) -> bool:
        """Whether the same amounts at this and all later sites meet the budget."""
        later = self._levels({**amounts, **rung})
        return self.fits({name: np.concatenate([decided[name][:step], later[name][step:]]) for name in later})

    def _levels(self, amounts: Mapping[str, Amount]) -> Levels:
        """Return the levels of the same amounts at every site, worked out once."""
        key = tuple(amounts.items())
        if key not in self._even:
            self._even[key] = self.space.even_levels(amounts)
        return self._even[key]

    def _choices(self, technique: Technique, step: int, here: Mapping[str, int]) -> Sequence[int]:
        """Return the levels that the limit leaves at a site, ascending."""
        choices = self.space.choices(technique, step, here)
        if len(choices) == 1:
            return choices
        least = self.space.level(technique, step, self.limits.of(technique), here)
        return choices[bisect_left(choices, least) :]

    def _farthest(self) -> str:
        """Return what the smallest shares are reached with, for a message."""
        if not self.most:
            on = " and ".join(technique.name for technique in self.space.techniques)
            return f"since no even plan can use {on}; add the technique channels"
        names = {technique.name: technique.key for technique in self.space.techniques}
        return "with " + ", ".join(
            f"{names[name]} {amount:g} everywhere" for name, amount in self.most.items()
        )


class _Trial:
    """Tries levels at one site: the sites to come are either at their most, or whole.

    Args:
        projection: the projection of the budget.
        step: index of the site.
        decided: levels of all sites, of which the first `step` count.
        amounts: technique -> amount asked for at this site.
    """

    def __init__(
        self, projection: BudgetProjection, step: int, decided: Levels, amounts: dict[str, Amount]
    ) -> None:
        self._projection = projection
        self._space = projection.space
        self._step = step
        self._least, self._whole = (
            {name: np.concatenate([decided[name][:step], later[name][step:]]) for name in later}
            for later in (projection.least, projection.space.neutral)
        )
        self._amounts = amounts

    def closed(self, here: Mapping[str, int]) -> bool:
        """Whether what is decided, here and before, leaves nothing to decide."""
        for name, level in here.items():
            self._whole[name][self._step] = level
        return any(one.closes(self._step, self._whole) for one in self._space.staged)

    def level(self, technique: Technique, here: Mapping[str, int]) -> int:
        """Return the level that is asked for, given those of earlier techniques."""
        amount = self._amounts.get(technique.name, technique.neutral)
        return self._space.level(technique, self._step, amount, here)

    def reaches(self, here: Mapping[str, int], name: str, level: int) -> bool:
        """Whether the budget can be met with a level, families of techniques at their most from here on."""
        return self._fits({**here, name: level}, {**self._amounts, **self._projection.most}, self._least)

    def leaves_unused(self, here: Mapping[str, int], name: str, level: int) -> bool:
        """Whether the budget is met with a level even if all sites to come stay whole."""
        return self._fits({**here, name: level}, self._amounts, self._whole)

    def drop_extras_beyond_(self, technique: Technique, here: Mapping[str, int]) -> None:
        """Ask for nothing of later techniques of no family if that breaks the budget: a gate has a price."""
        later = self._space.staged[self._space.staged.index(technique) + 1 :]
        extras = {one.name for one in later if one.family is None} & self._amounts.keys()
        if extras and not self.reaches(here, technique.name, here[technique.name]):
            self._amounts = {name: one for name, one in self._amounts.items() if name not in extras}

    def _fits(
        self, here: Mapping[str, int], amounts: Mapping[str, Amount], levels: Mapping[str, Counts]
    ) -> bool:
        complete = dict(here)
        for technique in self._space.staged:
            name = technique.name
            if name not in complete:
                amount = amounts.get(name, technique.neutral)
                complete[name] = self._space.level(technique, self._step, amount, complete)
            levels[name][self._step] = complete[name]
        return self._projection.fits(levels)


def _settled(
    choices: Sequence[int],
    wanted: int,
    reachable: Callable[[int], bool],
    unused: Callable[[int], bool] | None,
) -> int:
    """Return the level nearest to the one wanted from which the budget can be met, and used up.

    Args:
        choices: levels, ascending.
        wanted: the level that is asked for.
        reachable: whether the sites to come, at their most, can meet the budget with a level.
        unused: whether the budget is met even if nothing more is compressed; None: that does not matter.
    """
    chosen = min(range(len(choices)), key=lambda position: abs(choices[position] - wanted))
    if unused is not None and chosen < len(choices) - 1 and unused(choices[chosen]):
        # compressing more than this would leave the sites to come nothing to do and the budget not used up
        chosen = min(_last(choices[chosen:], unused) + chosen + 1, len(choices) - 1)
    if reachable(choices[chosen]):
        return choices[chosen]
    if not reachable(choices[0]) and reachable(choices[-1]):
        return choices[-1]  # to compress nothing may cost less than to compress a little
    return choices[_last(choices[:chosen] or choices[:1], reachable)]


def ladders(cost: CostModel, limits: Limits) -> list[list[dict[str, Amount]]]:
    """Return the ladder of each family that is on, from the least compression to the most.

    A rung is technique -> amount: all techniques of a family climb together.
    """
    found = []
    for family in FAMILIES:
        members = [technique for technique in cost.space.techniques if technique.family == family]
        climbs = [technique.ladder(limits.of(technique)) for technique in members]
        if members:
            names = [technique.name for technique in members]
            found.append([dict(zip(names, rung, strict=True)) for rung in zip(*climbs, strict=True)])
    return found


def smallest_shares(cost: CostModel, limits: Limits) -> dict[str, float]:
    """Return, for each measure that has a price, the smallest share of the dense network that can remain."""
    most = {name: one for rungs in ladders(cost, limits) for name, one in rungs[-1].items()}
    return cost.shares(cost.space.even_levels(most))


def rounded_up(share: float) -> str:
    """Return a share with four decimals, so that the smallest reachable share can be asked for as shown."""
    return f"{math.ceil(share * 1e4) / 1e4:.4f}"


def _last(choices: Sequence[int], fits: Callable[[int], bool]) -> int:
    """Return the position of the last choice that fits, the first if none does: fitting is monotone."""
    low, high = 0, len(choices) - 1
    while low < high:
        middle = math.ceil((low + high) / 2)
        low, high = (middle, high) if fits(choices[middle]) else (low, middle - 1)
    return low
