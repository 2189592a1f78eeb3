"""What can be decided about a network: sites, techniques, their levels there, and plans made of these."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from prunegym.pruning.errors import PlanError
from prunegym.pruning.method import DEFAULT_METHOD
from prunegym.pruning.plan import Amount, CompressionPlan
from prunegym.pruning.products import Counts
from prunegym.pruning.registry import nearest_hint, unknown_name
from prunegym.pruning.technique import Levels, Subject, Technique
from prunegym.pruning.techniques import TECHNIQUES


class DecisionSpace:
    """The sites at which the techniques in use can decide, and the levels of plans there.

    Args:
        subject: the dense network; its method names the techniques.

    Raises:
        UnknownNameError: there is no such technique.
        PlanError: no technique is named, there is nothing to decide anywhere, or a technique not on by
            default can decide nowhere.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        kinds = technique_kinds(subject.method.techniques)
        refusals = {kind.name: kind.refusals(subject) for kind in kinds}
        self.sites = tuple(
            site for site in subject.sites if any(site.name not in refused for refused in refusals.values())
        )
        if not self.sites:
            raise PlanError(f"there is nothing to decide: {_reasons(subject, kinds, refusals)}")
        for kind in kinds:
            if kind.name not in DEFAULT_METHOD.techniques and len(refusals[kind.name]) == len(subject.sites):
                site, reason = next(iter(refusals[kind.name].items()))
                raise PlanError(
                    f"the technique {kind.name} can decide nowhere here: at {site}, {reason}, and so "
                    "on; leave it out of the techniques"
                )
        self.techniques = tuple(kind(subject, self.sites) for kind in kinds)  # in the order of actions
        self.staged = tuple(sorted(self.techniques, key=lambda technique: technique.stage))
        self.available = {
            name: np.array([site.name not in refused for site in self.sites])
            for name, refused in refusals.items()
        }
        self._refusals = refusals
        self._index = {site.name: index for index, site in enumerate(self.sites)}
        self.neutral: Levels = self._complete({})  # nothing is compressed

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the techniques, in the order of an action's entries."""
        return tuple(technique.key for technique in self.techniques)

    def choices(self, technique: Technique, site: int, earlier: Mapping[str, int]) -> Sequence[int]:
        """Return the levels of a technique at a site, ascending, the last one neutral."""
        if self.available[technique.name][site]:
            return technique.levels(site, earlier)
        return (technique.neutral_level(site, earlier),)

    def level(self, technique: Technique, site: int, amount: Amount, earlier: Mapping[str, int]) -> int:
        """Return the level of an amount; the neutral one where the technique cannot decide."""
        if self.available[technique.name][site] and amount != technique.neutral:
            return technique.level(site, amount, earlier)
        return technique.neutral_level(site, earlier)

    def even_levels(self, amounts: Mapping[str, Amount]) -> Levels:
        """Return the levels of the same amounts at every site: technique -> amount, others neutral."""
        return self.levels_of([amounts] * len(self.sites))

    def levels_of(self, amounts: Sequence[Mapping[str, Amount]]) -> Levels:
        """Return the levels of the amounts at each site: technique -> amount, others neutral."""
        return self._complete(dict(enumerate(amounts)))

    def even_plan(self, amounts: Mapping[str, Amount]) -> CompressionPlan:
        """Return the plan with the same amounts, technique -> amount, wherever the technique can decide."""
        return CompressionPlan(
            {
                site.name: {
                    technique.key: amounts.get(technique.name, technique.neutral)
                    for technique in reversed(self.techniques)
                    if self.available[technique.name][index]
                }
                for index, site in enumerate(self.sites)
            }
        )

    def levels(self, plan: CompressionPlan) -> Levels:
        """Return the levels of a plan.

        Raises:
            PlanError: the plan names a frozen group, or an amount that cannot be there.
            UnknownNameError: it names a site that the network does not have, or a technique that is not on.
        """
        wanted: dict[int, dict[str, Amount]] = {}
        for name, decision in plan.decisions.items():
            amounts = self._amounts(name, decision)
            if name in self._index:
                wanted[self._index[name]] = amounts
        return self._complete(wanted)

    def plan(self, levels: Levels) -> CompressionPlan:
        """Return the plan with these levels; the inverse of `levels`."""
        decisions: dict[str, dict[str, Amount]] = {}
        for index, site in enumerate(self.sites):
            here = {name: int(of_sites[index]) for name, of_sites in levels.items()}
            decisions[site.name] = {
                technique.key: technique.amount(index, here[technique.name], here)
                for technique in reversed(self.techniques)
                if self.available[technique.name][index]
            }
        return CompressionPlan(decisions)

    def describe(self) -> list[dict[str, str | None]]:
        """Return each site's name and, by technique, why that cannot decide there; None where it can."""
        return [
            {"name": site.name, **{name: refused.get(site.name) for name, refused in self._refusals.items()}}
            for site in self.sites
        ]

    def _amounts(self, name: str, decision: Mapping[str, Amount]) -> dict[str, Amount]:
        """Return technique -> amount of one site's decision, refusing what cannot be there."""
        by_key = {technique.key: technique for technique in self.techniques}
        amounts = {}
        for key, amount in decision.items():
            if key not in by_key:
                raise _unknown_key(name, key, self.techniques)
            technique = by_key[key]
            technique.check(amount, f"site {name!r}")
            amounts[technique.name] = amount
        self._check_site(
            name,
            [
                technique
                for technique in self.techniques
                if amounts.get(technique.name, technique.neutral) != technique.neutral
            ],
        )
        return amounts

    def _check_site(self, name: str, asked: Collection[Technique]) -> None:
        frozen = {group.name: group.frozen for group in self.subject.graph.groups}
        known = {site.name for site in self.subject.sites}
        if name not in known and name not in frozen:
            raise unknown_name("site", name, known | set(frozen))
        for technique in asked:
            reason = self._refusals[technique.name].get(name, None if name in known else "it is not a site")
            if reason is not None and frozen.get(name):
                raise PlanError(f"group {name!r} is frozen ({frozen[name]}); take it out of the plan")
            if reason is not None:
                raise PlanError(
                    f"site {name!r} takes no {technique.key} ({reason}); set it to {technique.neutral:g} "
                    "or leave it out"
                )

    def _complete(self, wanted: Mapping[int, Mapping[str, Amount]]) -> Levels:
        """Return levels from the amounts wanted at some sites; everything else is neutral."""
        levels: dict[str, Counts] = {
            technique.name: np.zeros(len(self.sites), dtype=np.int64) for technique in self.staged
        }
        for index in range(len(self.sites)):
            amounts = wanted.get(index, {})
            here: dict[str, int] = {}
            for technique in self.staged:
                amount = amounts.get(technique.name, technique.neutral)
                here[technique.name] = self.level(technique, index, amount, here)
                levels[technique.name][index] = here[technique.name]
        return levels


def technique_kinds(names: Collection[str]) -> list[type[Technique]]:
    """Return the techniques of these names, in the order of the registry.

    Raises:
        UnknownNameError: there is no such technique.
        PlanError: none is named.
    """
    for name in names:
        TECHNIQUES[name]  # an unknown name is refused
    if not names:
        raise PlanError(f"no technique is on; name some of: {', '.join(TECHNIQUES)}")
    return [kind for name, kind in TECHNIQUES.items() if name in names]


def _unknown_key(site: str, key: str, techniques: Sequence[Technique]) -> PlanError:
    """Return the error for an amount of no technique, or of one that is not on."""
    on = [technique.key for technique in techniques]
    off = {kind.key: name for name, kind in TECHNIQUES.items() if kind.key not in on}
    if key in off:
        names = " ".join([*(technique.name for technique in techniques), off[key]])
        return PlanError(
            f"site {site!r}: {key} belongs to the technique {off[key]}, which is not on; "
            f"add --techniques {names}"
        )
    return PlanError(
        f"site {site!r}: no technique decides {key!r}.{nearest_hint(key, on)} On: {', '.join(on)}"
    )


def _reasons(
    subject: Subject, kinds: Sequence[type[Technique]], refusals: Mapping[str, Mapping[str, str]]
) -> str:
    frozen = sorted({group.frozen for group in subject.graph.groups if group.frozen})
    found = [f"{kind.name}: {'; '.join(sorted(set(refusals[kind.name].values())))}" for kind in kinds]
    return "; ".join([*found, *(f"groups are frozen: {reason}" for reason in frozen)])
