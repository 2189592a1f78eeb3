"""Whole residual blocks removed, beside uniform static pruning to the same multiply-adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from prunegym.agents.pictures.ranks import rank_correlation
from prunegym.envs import static_plan
from prunegym.pruning.apply import Compressed
from prunegym.pruning.calibration.statistics import real_images
from prunegym.pruning.errors import PruningError
from prunegym.pruning.latency.timing import measure_latency
from prunegym.pruning.method import Method
from prunegym.pruning.metrics import divergence, predictions
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.networks.registry import resolve_network
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.runtime.slicing import deployed
from prunegym.scripts.benchmarks.assets import cifar_task
from prunegym.scripts.benchmarks.figures import accuracy_on
from prunegym.scripts.benchmarks.results import progress_bar
from prunegym.scripts.building import usable_device
from prunegym.scripts.options.benchmark import BenchmarkConfig
from prunegym.scripts.tables import print_note, print_table

NETWORKS = ("cifar_resnet56",)
UNTRAINED = "torchvision/resnet18"  # at 224 pixels, weights at random: for latency alone
COUNTS = (2, 4, 6, 8)  # blocks removed, those of least loss
MAX_STATIC_RATIO = 0.9
TECHNIQUES = ("channels", "depth")
NONE = Method(compensation="none", techniques=TECHNIQUES)


def measure(config: BenchmarkConfig) -> dict[str, Any]:
    """Return, by network, the rows of the table, and how well the foreseen losses rank the blocks."""
    found = {name: _measure_trained(name, config) for name in config.networks or NETWORKS}
    try:
        found[UNTRAINED] = _measure_untrained(config)
    except PruningError as error:  # without torchvision
        found[UNTRAINED] = {"failed": str(error)}
    return found


def _measure_trained(name: str, config: BenchmarkConfig) -> dict[str, Any]:
    task = cifar_task(name, config)
    network = PrunableNetwork(task.model, task.calibration, method=Method(techniques=TECHNIQUES))
    losses = foreseen(network)
    ranked = sorted(losses, key=lambda site: losses[site])
    dense = accuracy_on(task.model, task.splits.test)
    expected, _ = predictions(task.model, task.splits.test.batches())
    apart = []
    for site in progress_bar(ranked, shown=config.progress, desc=name, unit="block", leave=False):
        logits, _ = predictions(network.apply(removing([site])).model, task.splits.test.batches())
        apart.append(divergence(logits, expected))
    correlation = rank_correlation(np.array([losses[site] for site in ranked]), np.array(apart))
    models, rows = {"dense": task.model}, {"dense": {"macs": 1.0, "accuracy": dense}}
    for count in COUNTS:
        plan = removing(ranked[:count])
        for row, small in beside_widths(network, plan).items():
            models[row] = small.model
            rows[row] = {
                "macs": network.cost.shares(small.levels)["macs"],
                "accuracy": accuracy_on(small.model, task.splits.test),
            }
        bare = network.apply(plan, method=NONE).model
        rows[f"{count} blocks"]["not refitted"] = accuracy_on(bare, task.splits.test)
    image = task.splits.test.images[:1].to(next(task.model.parameters()).device)
    return {"rows": _timed(rows, models, image), "correlation": correlation, "losses": losses}


def _measure_untrained(config: BenchmarkConfig) -> dict[str, Any]:
    torch.manual_seed(config.seed)
    spec = resolve_network(UNTRAINED)
    model = spec.build().eval().to(usable_device(config.device))
    images = torch.randn(8, *spec.input_shape)
    network = PrunableNetwork(model, real_images(model, [images]), method=NONE)
    sites = list(foreseen(network))
    models, rows = {"dense": model}, {"dense": {"macs": 1.0}}
    for count in (1, 2, 4):
        for row, small in beside_widths(network, removing(sites[-count:])).items():
            models[row] = small.model
            rows[row] = {"macs": network.cost.shares(small.levels)["macs"]}
    return {"rows": _timed(rows, models, images[:1].to(next(model.parameters()).device))}


def foreseen(network: PrunableNetwork) -> dict[str, float]:
    """Return, for each site where a block begins, the loss that is foreseen if it goes."""
    (depth,) = (one for one in network.space.techniques if one.name == "depth")
    losses, admitted = depth.features(network.foresight)["loss"], network.space.available["depth"]
    return {
        site.name: float(loss)
        for site, loss, may in zip(network.space.sites, losses, admitted, strict=True)
        if may
    }


def removing(sites: list[str]) -> CompressionPlan:
    """Return the plan that removes the blocks that begin at some sites."""
    return CompressionPlan({site: {"depth": 1.0} for site in sites})


def beside_widths(network: PrunableNetwork, plan: CompressionPlan) -> dict[str, Compressed]:
    """Return, by row of the table, the networks without some blocks and with all layers narrower instead."""
    name, small = f"{len(plan.decisions)} blocks", network.apply(plan)
    share = network.cost.shares(small.levels)["macs"]
    thin = network.apply(static_plan(network, share, max_static_ratio=MAX_STATIC_RATIO))
    return {name: small, f"widths, as {name}": thin}


def _timed(
    rows: dict[str, dict[str, float]], models: Mapping[str, torch.nn.Module], image: torch.Tensor
) -> dict[str, dict[str, float]]:
    times = measure_latency({name: deployed(model, image.shape[1:]) for name, model in models.items()}, image)
    return {name: {**row, "latency": times[name] / times["dense"]} for name, row in rows.items()}


def show(record: Mapping[str, Any]) -> None:
    """Print a table per network: multiply-adds, latency and accuracy."""
    for name, found in record.items():
        if "failed" in found:
            print_note(f"{name}: not measured, {found['failed']}")
            continue
        kinds = [kind for kind in ("accuracy", "not refitted") if "accuracy" in found["rows"]["dense"]]
        cells = [
            (row, f"{one['macs']:.1%}", f"{one['latency']:.1%}", *(_share(one.get(kind)) for kind in kinds))
            for row, one in found["rows"].items()
        ]
        print_table(name, ("removed", "MACs", "latency", *kinds), cells)
        if "correlation" in found:
            ranks = f"{found['correlation']:.2f}"
            print_note(f"rank correlation of a block's foreseen loss with the divergence without it: {ranks}")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
