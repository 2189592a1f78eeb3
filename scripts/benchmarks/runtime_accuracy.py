"""Accuracy of static pruning, runtime pruning and both, at equal multiply-adds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunegym.envs import Task
from prunegym.pruning.apply import Compressed
from prunegym.pruning.data import ImageSplits
from prunegym.pruning.method import Method
from prunegym.pruning.metrics import accuracy, predictions
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.runtime.gates import RuntimeGates, as_key, attach_gates_, detach_gates_, gates_of
from prunegym.pruning.training.finetuning import FinetuningConfig, finetune_
from prunegym.scripts.benchmarks.assets import cifar_task
from prunegym.scripts.benchmarks.figures import accuracy_on
from prunegym.scripts.benchmarks.results import Record, progress_bar
from prunegym.scripts.benchmarks.trust import TrustGate
from prunegym.scripts.options.benchmark import BenchmarkConfig
from prunegym.scripts.tables import print_table

NETWORKS = ("cifar_resnet20", "cifar_resnet56")
INNER = ("*.conv1",)  # of each block: its inner channels
RATIOS = (0.5, 0.7)  # of them, pruned or skipped
RUNTIME_SHARE = 0.25  # of the survivors, where both kinds of pruning share the work
COMPENSATION = "least-squares-progressive"
EPOCHS = 5
SOURCES = ("distilled", "data", "fine-tuned")  # the last goes on from `data`


@dataclass(frozen=True)
class Kind:
    """How the channels that do not run are divided; `trust` is the published rule's."""

    name: str
    runtime: float | None = None  # share of the survivors; None: all of the ratio
    trust: float | None = None

    def decision(self, ratio: float) -> dict[str, float]:
        """Return the ratios of each group that leave 1 - ratio of its units running."""
        if self.runtime is None:
            return {"static_ratio": 0.0, "runtime_ratio": ratio}
        static = 1 - (1 - ratio) / (1 - self.runtime)
        return {"static_ratio": static, "runtime_ratio": self.runtime}


KINDS = (
    Kind("static", runtime=0.0),
    Kind("static and runtime", runtime=RUNTIME_SHARE),
    Kind("runtime"),
    Kind("trust 0.5 (Chen et al.)", trust=0.5),
)


def measure(config: BenchmarkConfig, found: dict[str, Any], record: Record) -> None:
    """Add to `found`, by network, a cell for each source, kind and ratio; write the record as it grows."""
    for name in config.networks or NETWORKS:
        cells = found.setdefault(name, {"cells": {}})["cells"]
        for calibration in ("distilled", "data"):
            missing = [
                (kind, ratio)
                for kind, ratio in _rows()
                if any(_key(source, kind, ratio) not in cells for source in _sources(calibration))
            ]
            if missing:
                _measure_calibration(name, config, calibration, missing, found[name], record)


def _rows() -> Iterator[tuple[Kind, float]]:
    for ratio in RATIOS:
        for kind in KINDS:
            yield kind, ratio


def _sources(calibration: str) -> tuple[str, ...]:
    return SOURCES[:1] if calibration == "distilled" else SOURCES[1:]


def _key(source: str, kind: Kind, ratio: float) -> str:
    return f"{source}/{kind.name}/{ratio:.0%}"


def _measure_calibration(
    name: str,
    config: BenchmarkConfig,
    calibration: str,
    missing: list[tuple[Kind, float]],
    found: dict[str, Any],
    record: Record,
) -> None:
    labelled = calibration == "data"
    task = cifar_task(name, config, labelled=labelled, calibration=calibration, seed=config.seed)
    network = PrunableNetwork(
        task.model, task.calibration, method=Method(compensation=COMPENSATION), only=INNER
    )
    found["dense"] = accuracy_on(task.model, task.splits.test)
    label = f"{name} {calibration}"
    for kind, ratio in progress_bar(missing, shown=config.progress, desc=label, leave=False):
        start = time.perf_counter()
        small = _applied(network, kind, ratio)
        for source in _sources(calibration):
            if source == "fine-tuned":
                assert isinstance(task.splits, ImageSplits)  # there is data
                training = FinetuningConfig(EPOCHS, flip=True, shift=4, seed=config.seed)
                finetune_(small.model, task.splits.all_but_test(), training, teacher=task.model)
            cell = _cell(network, small, task)
            found["cells"][_key(source, kind, ratio)] = {**cell, "seconds": time.perf_counter() - start}
            record.keep()


def _applied(network: PrunableNetwork, kind: Kind, ratio: float) -> Compressed:
    torch.manual_seed(0)
    plan = CompressionPlan({group.name: kind.decision(ratio) for group in network.graph.prunable})
    if kind.trust is None:
        return network.apply(plan)
    bare = Method(compensation="none")  # as published, where all is left to training
    found = network.apply(plan, method=bare)
    _trust_(found.model, network, kind.trust)
    return found


def _trust_(model: nn.Module, network: PrunableNetwork, trust: float) -> None:
    """Replace a network's gates by those of the published rule, with the same scores and fills."""
    gates = gates_of(model)
    assert gates is not None
    trusted = RuntimeGates(gates.sites)
    for site in gates.sites:
        gate = TrustGate(site, network.scores[site.group].float(), trust=trust)
        gate.load_state_dict(gates.gate_for(site.group).state_dict(), strict=False)
        trusted[as_key(site.group)] = gate
    detach_gates_(model)
    attach_gates_(model, trusted)


def _cell(network: PrunableNetwork, small: Compressed, task: Task) -> dict[str, float]:
    quantities = network.cost.quantities(small.levels)
    executed = quantities["executed"].astype(float)
    together = task.splits.test.batches(len(task.splits.test))  # the masks are then those of all images
    right = accuracy(*predictions(small.model, together))
    gates = gates_of(small.model)
    if gates is not None:  # how many units the published rule runs is known from the images alone
        for number, group in enumerate(network.graph.prunable):
            mask = gates.gate_for(group.name).mask
            assert mask is not None
            executed[number] = float(mask.sum(1).mean())
    macs = network.cost.total("macs", {**quantities, "executed": executed})
    return {
        "accuracy": right,
        "macs": macs / network.cost.price("macs", network.cost.dense),
        "params": network.cost.shares(small.levels)["params"],
    }


def show(found: Mapping[str, Any]) -> None:
    """Print a table per network: multiply-adds, parameters, and accuracy by source of the calibration."""
    for name, measured in found.items():
        rows = []
        for kind, ratio in _rows():
            cells = [measured["cells"].get(_key(source, kind, ratio)) for source in SOURCES]
            known = next(filter(None, cells), None)
            if known is not None:
                figures = [f"{100 * cell['accuracy']:.1f}" if cell else "" for cell in cells]
                shares = (f"{known['macs']:.1%}", f"{known['params']:.1%}")
                rows.append((f"-{ratio:.0%}", kind.name, *shares, *figures))
        title = (
            f"{name}, dense {measured['dense']:.1%}, 500 test images; fine-tuned: {EPOCHS} epochs of "
            "distillation on 4,000 images"
        )
        headings = ("inner channels", "pruning", "MACs", "parameters", *SOURCES)
        print_table(title, headings, rows, left=("pruning",))
