"""Measure a latency table: the layers by themselves, then some whole networks cut at random."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from prunegym.pruning.graph import ChannelGraph
from prunegym.pruning.latency.layers import ROUNDS, LayerGrid, TimeOf, image_for, time_layers
from prunegym.pruning.latency.prices import NANOSECONDS, Integers, LayerSums
from prunegym.pruning.latency.records import LatencyTable, fit_whole
from prunegym.pruning.latency.timing import time_once
from prunegym.pruning.plan import kept_units
from prunegym.pruning.surgery.cutting import cut
from prunegym.pruning.surgery.equalization import fuse_batch_norms

PLANS = 17  # cut and measured whole: every other one is fitted to, the rest tell the error
WHOLE_ROUNDS = 7
MAX_STATIC_RATIO = 0.9  # static ratio of a random plan
RATIO_SPREAD = 0.3  # of a plan's ratios, to both sides

brief_time: TimeOf = partial(time_once, seconds=0.002)


@dataclass(frozen=True)
class _Whole:
    """A network that was cut, and its measured milliseconds."""

    counts: Integers
    milliseconds: float


def measure_table(
    model: nn.Module,
    graph: ChannelGraph,
    grids: list[LayerGrid],
    key: Mapping[str, Any],
    *,
    time_of: TimeOf = brief_time,
    progress: bool = False,
) -> LatencyTable:
    """Return the times of a network's layers at many widths, and how well they predict whole networks.

    Args:
        model: the dense network; it is not changed.
        graph: the network's groups, no patterns applied.
        grids: the layers and widths to time, from `layer_grids`.
        key: the key of the table.
        time_of: times a network on an image.
        progress: show a bar.
    """
    fused = fuse_batch_norms(model, graph)
    shown = progress and sys.stderr.isatty()
    with tqdm(desc="latency table", unit="time", disable=not shown, leave=False) as bar:
        bar.total = ROUNDS * sum(grid.points for grid in grids) + WHOLE_ROUNDS * (PLANS + 1)
        layers = time_layers(fused, grids, time_of, bar)
        networks = _time_whole(model, graph, time_of, bar)
    sums = LayerSums(graph, layers)
    predicted = [sums.nanoseconds(network.counts) / NANOSECONDS for network in networks]
    values = [sums.values(network.counts) for network in networks]
    measured = [network.milliseconds for network in networks]
    # the dense network weighs as much as all others: each share is of it
    fitted = [*[0] * (PLANS // 2), *range(0, len(predicted), 2)]
    whole = fit_whole(*([column[row] for row in fitted] for column in (predicted, values, measured)))
    shares = np.array([whole(*pair) for pair in zip(predicted, values, strict=True)]) / np.array(measured)
    return LatencyTable(key, layers, whole, measured[0], tuple((shares[1::2] / shares[0] - 1).tolist()))


def _time_whole(model: nn.Module, graph: ChannelGraph, time_of: TimeOf, bar: tqdm[Any]) -> list[_Whole]:
    """Return the dense network and some cut at random, each at its fastest of WHOLE_ROUNDS in turn."""
    units = np.array([group.units for group in graph.prunable], dtype=np.int64)
    plans = [units, *_random_counts(units)]
    networks = []
    for counts in plans:
        kept = {  # which units these are does not matter for latency
            group.name: torch.arange(count)
            for group, count in zip(graph.prunable, counts.tolist(), strict=True)
            if count < group.units
        }
        networks.append(fuse_batch_norms(cut(model, graph, kept), graph))
    image = image_for(model, graph)
    times = np.full((WHOLE_ROUNDS, len(plans)), np.inf)
    for place in np.ndindex(*times.shape):
        times[place] = time_of(networks[place[1]], image)
        bar.update()
    return [_Whole(counts, fastest) for counts, fastest in zip(plans, times.min(0).tolist(), strict=True)]


def _random_counts(units: Integers) -> list[Integers]:
    """Return the unit counts of random plans, from hardly pruned to almost nothing kept."""
    rng = np.random.default_rng(0)
    plans = []
    for level in np.linspace(0.0, MAX_STATIC_RATIO, PLANS):
        ratios = np.clip(level + rng.uniform(-RATIO_SPREAD, RATIO_SPREAD, len(units)), 0.0, MAX_STATIC_RATIO)
        kept = [kept_units(int(count), ratio) for count, ratio in zip(units, ratios.tolist(), strict=True)]
        plans.append(np.array(kept, dtype=np.int64))
    return plans
