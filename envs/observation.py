"""The observation of the site about to be decided: named features that mean the same in any network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunegym.envs.budget import Budget
from prunegym.pruning.graph import ChannelGraph
from prunegym.pruning.graph.sites import Site
from prunegym.pruning.measures import MEASURES
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.plan import Amount
from prunegym.pruning.technique import Levels, Technique

OBSERVATION_VERSION = 4

SITE_FEATURES: Mapping[str, str] = {
    "place": "0 at the first site, 1 at the last",
    "units": "log2 of the units of the group, or of the outputs of the layer; 1 at 4096",
    "writers": "1 - 1 / number of layers that write the group: 0 inside a block, near 1 for a long trunk",
    "readers": "likewise for the layers that read it",
    "positions": "log2 of the first writer's output positions, 1 at 65,536",
    "kernel": "positions in the first writer's kernel, 1 at 9 and above",
    "loo_gain": "square root of the leave-one-out gain, see `UniformBaseline`",
    "loo_gain_price": "leave-one-out gain per multiply-adds saved, 0.5 for the median site",
    "loo_gain_rank": "share of sites with a smaller leave-one-out gain",
}
TECHNIQUE_FEATURES: Mapping[str, str] = {
    "available": "1 if the technique can decide at the site",
    "last": "how far it compresses the site before, from 0, not at all, to 1",
    "mean": "likewise over the sites decided, weighted by their multiply-adds",
    "even": "likewise in the even plan of this and all later sites; of techniques that the even plan uses",
}
MEASURE_FEATURES: Mapping[str, str] = {  # but for `budget`, 0 where a measure is not told of, see `Observer`
    "budget": "the share that may remain; 1 where there is no budget",
    "share": "square root of the share of the dense price saved if the site vanished",
    "now": "share of the dense price if all later sites were left alone",
    "to_come": "share of the dense price that this and the later sites could save",
}
ALWAYS_TOLD = ("macs",)  # measures that features tell of whatever the budget is
SHARES_TOLD = ("macs", "params")  # of which they tell the sites' shares whatever it is
CONTEXT = ("available", "budget", "even")  # prefixes of the features that are no standard scores


def observation_names(techniques: Sequence[type[Technique] | Technique]) -> tuple[str, ...]:
    """Return the names of the features, with these techniques on."""
    names = list(SITE_FEATURES)
    for technique in techniques:
        own = (f"{technique.key}_{name}" for name in technique.feature_names)
        parts = [name for name in TECHNIQUE_FEATURES if name != "even" or technique.family]
        names += [*(f"{part}_{technique.key}" for part in parts), *own]
    names += [f"{part}_{measure}" for measure in MEASURES for part in MEASURE_FEATURES]
    return tuple(names)


def context_features(names: Sequence[str]) -> NDArray[np.bool_]:
    """Return which features are the same for every site, or say what can be done there: [F]."""
    return np.array([name.startswith(tuple(f"{prefix}_" for prefix in CONTEXT)) for name in names])


@dataclass(frozen=True)
class Progress:
    """The episode so far."""

    step: int  # sites decided
    levels: Levels  # of all sites; those not decided are neutral
    even: Mapping[str, Amount]  # technique -> amount in the even plan of the sites from here on
    loo_gain: NDArray[np.float64]  # see `UniformBaseline`


class Observer:
    """Computes the features; what does not change within an episode is computed once.

    Features tell of the measures that the budget names, and of those in ALWAYS_TOLD: what an agent would see
    of the others is nearly the same numbers again (docs/decisions.md, D45).

    Args:
        network: the network whose sites are observed.
        budget: the budget of the episode.
    """

    def __init__(self, network: PrunableNetwork, budget: Budget) -> None:
        self._space, self._cost, self._budget = network.space, network.cost, budget
        self.names = observation_names(self._space.techniques)
        self._place = {name: index for index, name in enumerate(self.names)}
        self._shares = {name: self._cost.vanishing_shares(name) for name in MEASURES}
        self._to_come = {
            name: [float(shares[done:].sum()) for done in range(len(shares) + 1)]
            for name, shares in self._shares.items()
        }
        self._fixed = self._fixed_features(network)

    def observe(self, progress: Progress) -> NDArray[np.float32]:
        """Return the features of the site at `progress.step`, float32 [F]; after the last, of the last."""
        done, levels = progress.step, progress.levels
        step = min(done, len(self._fixed) - 1)
        features, place = self._fixed[step].copy(), self._place
        weights = self._shares["macs"][:done]
        for technique in self._space.techniques:
            compressed = technique.compression(levels)
            if done:
                features[place[f"last_{technique.key}"]] = compressed[done - 1]
            if weights.sum() > 0:
                features[place[f"mean_{technique.key}"]] = compressed[:done] @ weights / weights.sum()
            if technique.family:
                features[place[f"even_{technique.key}"]] = technique.scaled(progress.even[technique.name])
        told = {*ALWAYS_TOLD, *self._budget.shares}
        now = self._cost.shares(levels, told)
        for name in told:
            features[place[f"now_{name}"]] = now[name]
            features[place[f"to_come_{name}"]] = self._to_come[name][done]
        for name, value in _loo_gain_features(progress.loo_gain, self._shares["macs"], step).items():
            features[place[name]] = value
        return np.clip(features.astype(np.float32), 0.0, 1.0)

    def _fixed_features(self, network: PrunableNetwork) -> NDArray[np.float64]:
        """Return the features that no decision changes, [sites, F]; zeros for all others."""
        sites = self._space.sites
        features = np.zeros((len(sites), len(self.names)))
        for index, site in enumerate(sites):
            for name, value in _shape_features(network.graph, site).items():
                features[index, self._place[name]] = value
        features[:, self._place["place"]] = np.arange(len(sites)) / max(1, len(sites) - 1)
        for technique in self._space.techniques:
            features[:, self._place[f"available_{technique.key}"]] = self._space.available[technique.name]
            for name, values in technique.features(network.foresight).items():
                features[:, self._place[f"{technique.key}_{name}"]] = values
        for name, shares in self._shares.items():
            features[:, self._place[f"budget_{name}"]] = self._budget.shares.get(name, 1.0)
            if name in self._budget.shares or name in SHARES_TOLD:
                features[:, self._place[f"share_{name}"]] = np.sqrt(np.maximum(shares, 0.0))
        return features


def _shape_features(graph: ChannelGraph, site: Site) -> dict[str, float]:
    group = site.group
    name = group.layers[0] if group else site.layer
    assert name is not None  # a site is a group or a layer
    writer = graph.layers[name]
    return {
        "units": math.log2(group.units if group else writer.cout) / 12,
        "writers": 1 - 1 / len(group.writers) if group else 0.0,
        "readers": 1 - 1 / max(1, len(group.readers)) if group else 0.0,
        "positions": math.log2(writer.positions) / 16,
        "kernel": writer.kernel / 9,
    }


def _loo_gain_features(
    loo_gain: NDArray[np.float64], macs_shares: NDArray[np.float64], step: int
) -> dict[str, float]:
    prices = loo_gain / np.maximum(macs_shares, 1e-9)
    usual = float(np.median(prices))
    return {
        "loo_gain": math.sqrt(loo_gain[step]),
        "loo_gain_price": float(prices[step] / (prices[step] + usual)) if prices[step] + usual > 0 else 0.5,
        "loo_gain_rank": float((loo_gain < loo_gain[step]).mean()),
    }
