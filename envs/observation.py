"""The observation of the group about to be decided: named features that mean the same in any network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prunegym.envs.budget import MEASURES, Budget
from prunegym.pruning.cost import CostModel, Widths
from prunegym.pruning.graph import ChannelGraph, ChannelGroup
from prunegym.pruning.network import PrunableNetwork

OBSERVATION_VERSION = 3
CONTEXT = ("gated", "macs_budget", "params_budget", "even_ratio")  # features that are no standard scores


class LayerObservation(NamedTuple):
    """Features of one group and of the episode so far, each in [0, 1], before `ObservationNormalizer`.

    Where the budget names latency, shares of latency stand wherever shares of MACs are named here.
    """

    depth: float  # 0 first group, 1 last
    units: float  # log2, 1 at 4096
    writers: float  # 1 - 1 / number of writers: 0 inside a block, near 1 for a long trunk
    readers: float  # likewise
    positions: float  # log2 of the first writer's output positions, 1 at 65,536
    kernel: float  # positions in the first writer's kernel, 1 at 9 and above
    gated: float  # 1 if the group takes a runtime gate
    macs_share: float  # square root of the share of dense MACs saved if the group vanished
    params_share: float  # likewise of parameters
    error_25: float  # square root of its readers' loss with a quarter of it pruned
    error_50: float  # with half
    error_75: float  # with three quarters
    error_rank: float  # share of groups with a smaller loss at one half
    price_rank: float  # share of groups that save fewer MACs per loss at one half
    loo_gain: float  # square root of the leave-one-out gain, see `UniformBaseline`
    loo_gain_price: float  # leave-one-out gain per MACs saved, 0.5 for the median group
    loo_gain_rank: float  # share of groups with a smaller leave-one-out gain
    macs_budget: float  # 1 where there is none
    params_budget: float
    even_ratio: float  # static ratio asked of this and all later groups to meet the budget
    macs_now: float  # share of dense MACs if all later groups stayed whole
    macs_to_come: float  # share of dense MACs that this and the later groups could save
    last_static: float  # ratios of the group before
    last_runtime: float
    mean_static: float  # over the groups decided, weighted by their MACs


@dataclass(frozen=True)
class Progress:
    """The episode so far."""

    step: int  # groups decided
    widths: Widths  # of all groups; those not decided are whole
    even_ratio: float
    budget: Budget
    loo_gain: NDArray[np.float64]  # see `UniformBaseline`


class Observer:
    """Computes the features; what does not change within an episode is computed once.

    Args:
        network: the network whose groups are observed.
        leading: the measure that "macs" stands for in the features, see `leading_measure`.
    """

    def __init__(self, network: PrunableNetwork, leading: str = "macs") -> None:
        self._cost = network.cost
        self._units = network.cost.dense.kept
        self._leading, self._price = leading, MEASURES[leading]
        self._dense_price = self._price(network.cost, network.cost.dense)
        self._macs_shares = network.cost.vanishing_shares(self._price)
        self._fixed = _fixed_features(network, self._macs_shares)

    def observe(self, progress: Progress) -> NDArray[np.float32]:
        """Return the features of the group at `progress.step`; after the last, of the last."""
        step = min(progress.step, len(self._fixed) - 1)
        widths, done = progress.widths, progress.step
        static = 1.0 - widths.kept / self._units
        runtime = 1.0 - widths.executed / widths.kept
        weights = self._macs_shares[:done]
        changing = {
            "even_ratio": progress.even_ratio,
            "macs_now": self._price(self._cost, widths) / self._dense_price,
            "macs_to_come": float(self._macs_shares[done:].sum()),
            "last_static": float(static[done - 1]) if done else 0.0,
            "last_runtime": float(runtime[done - 1]) if done else 0.0,
            "mean_static": float(static[:done] @ weights / weights.sum()) if weights.sum() > 0 else 0.0,
        }
        loo_gain = _loo_gain_features(progress.loo_gain, self._macs_shares, step)
        budgets = {
            "macs_budget": progress.budget.shares.get(self._leading, 1.0),
            "params_budget": progress.budget.shares.get("params", 1.0),
        }
        features = LayerObservation(**self._fixed[step], **loo_gain, **budgets, **changing)
        return np.clip(np.array(features, dtype=np.float32), 0.0, 1.0)


def _fixed_features(network: PrunableNetwork, macs_shares: NDArray[np.float64]) -> list[dict[str, float]]:
    groups = network.graph.prunable
    params_shares = network.cost.vanishing_shares(CostModel.params)
    curves = network.error_curves
    half = np.array([curve[1] for curve in curves])
    bargain = macs_shares / (half + 1e-6)
    found = []
    for number, (group, curve) in enumerate(zip(groups, curves, strict=True)):
        roots = {f"error_{share}": math.sqrt(loss) for share, loss in zip((25, 50, 75), curve, strict=True)}
        found.append(
            {
                **_shape_features(network.graph, group, number / max(1, len(groups) - 1)),
                **roots,
                "macs_share": math.sqrt(macs_shares[number]),
                "params_share": math.sqrt(params_shares[number]),
                "error_rank": float((half < half[number]).mean()),
                "price_rank": float((bargain < bargain[number]).mean()),
            }
        )
    return found


def _shape_features(graph: ChannelGraph, group: ChannelGroup, depth: float) -> dict[str, float]:
    writer = graph.layers[group.layers[0]]
    return {
        "depth": depth,
        "units": math.log2(group.units) / 12,
        "writers": 1 - 1 / len(group.writers),
        "readers": 1 - 1 / max(1, len(group.readers)),
        "positions": math.log2(writer.positions) / 16,
        "kernel": writer.kernel / 9,
        "gated": float(group.ungated is None),
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
