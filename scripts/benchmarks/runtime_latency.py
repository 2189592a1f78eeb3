"""Milliseconds for one image: dense, statically cut, and gated, by slices and by masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunegym.pruning.calibration.statistics import real_images
from prunegym.pruning.errors import PruningError
from prunegym.pruning.latency.timing import time_in_turn
from prunegym.pruning.method import Method
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.networks.registry import resolve_network
from prunegym.pruning.runtime.slicing import deployed
from prunegym.scripts.benchmarks.results import Record
from prunegym.scripts.building import usable_device
from prunegym.scripts.options.benchmark import BenchmarkConfig
from prunegym.scripts.tables import print_note, print_table

RATIOS = (0.3, 0.5, 0.7)
KINDS = ("static", "sliced", "masked")
THREADS = (2, 1)
ROUNDS = 15
IMAGES = 8  # of noise, to calibrate gates: only their time counts, not their choice


@dataclass(frozen=True)
class Subject:
    """A network, the side of its images, and the layers that are pruned: the inner ones of blocks."""

    network: str
    side: int
    only: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its key in the results."""
        return f"{self.network} at {self.side}"


SUBJECTS = (
    Subject("torchvision/resnet18", 224, ("*.conv1",)),
    Subject("torchvision/resnet18", 64, ("*.conv1",)),
    Subject("torchvision/wide_resnet50_2", 224, ("*.conv1", "*.conv2")),
    Subject("cifar_resnet56", 32, ("*.conv1",)),
)


def measure(config: BenchmarkConfig, found: dict[str, Any], record: Record) -> None:
    """Add to `found`, by network and threads, the quartiles of each form; write the record as it grows."""
    for subject in SUBJECTS:
        if subject.name in found and "not measured" not in found[subject.name]:
            continue
        if config.networks and subject.network not in config.networks:
            continue
        try:
            found[subject.name] = _measure_subject(subject, config)
        except PruningError as error:  # torchvision is an extra
            found[subject.name] = {"not measured": str(error)}
        record.keep()


def _measure_subject(subject: Subject, config: BenchmarkConfig) -> dict[str, Any]:
    device = usable_device(config.device)
    forms, shape = _forms(subject, device, config.seed)
    quartiles = {}
    before = torch.get_num_threads()
    for threads in THREADS:
        torch.set_num_threads(threads)
        try:
            times = time_in_turn(forms, torch.randn((1, *shape), device=device), rounds=ROUNDS)
        finally:
            torch.set_num_threads(before)
        quartiles[str(threads)] = {
            name: [found[len(found) * quarter // 4] for quarter in (1, 2, 3)] for name, found in times.items()
        }
    return quartiles


def _forms(subject: Subject, device: str, seed: int) -> tuple[dict[str, nn.Module], tuple[int, ...]]:
    """Return the network in every form, weights at random, BatchNorms fused but in the masked ones."""
    torch.manual_seed(seed)
    spec = resolve_network(subject.network, input_size=(3, subject.side, subject.side))
    model = spec.build().eval().to(device)
    noise = [torch.randn(IMAGES, *spec.input_shape)]
    network = PrunableNetwork(
        model, real_images(model, noise), method=Method(compensation="none"), only=subject.only
    )
    forms = {"dense": deployed(model, spec.input_shape)}
    for ratio in RATIOS:
        static, gated = (
            network.apply(network.space.even_plan({name: ratio})).model for name in ("channels", "gates")
        )
        forms[f"static {ratio:.0%}"] = deployed(static, spec.input_shape)
        forms[f"sliced {ratio:.0%}"] = deployed(gated, spec.input_shape)
        forms[f"masked {ratio:.0%}"] = gated
    return forms, spec.input_shape


def show(found: Mapping[str, Any]) -> None:
    """Print a table per network: median milliseconds with the half of the rounds around it, and ratios."""
    for name, by_threads in found.items():
        if "not measured" in by_threads:
            print_note(f"{name}: not measured, {by_threads['not measured']}")
            continue
        for threads, forms in by_threads.items():
            dense, rows = forms["dense"], []
            for ratio in RATIOS:
                kinds = [forms[f"{kind} {ratio:.0%}"] for kind in KINDS]
                static, sliced, _ = (median for _, median, _ in kinds)
                cells = [_cell(quartiles, dense) for quartiles in kinds]
                rows.append([f"{ratio:.0%}", *cells, f"{sliced / static:.2f}"])
            title = f"{name}, batch 1, {threads} threads: ms (quartiles), speed-up over dense"
            print_table(title, ("channels pruned or skipped", *KINDS, "sliced / static"), rows)
            print_note(f"dense: {_cell(dense, dense)}")


def _cell(quartiles: list[float], dense: list[float]) -> str:
    low, median, high = quartiles
    return f"{median:.2f} ({low:.2f}-{high:.2f}) {dense[1] / median:.2f}x"
