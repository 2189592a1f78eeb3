"""Compress pretrained CIFAR-10 ResNets without data, by every compensation and calibration."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from prunegym.envs import static_plan
from prunegym.pruning.compensation import COMPENSATIONS
from prunegym.pruning.method import Method
from prunegym.pruning.network import PrunableNetwork
from prunegym.scripts.benchmarks.assets import WEIGHTS, cifar_task
from prunegym.scripts.benchmarks.figures import accuracy_on
from prunegym.scripts.benchmarks.results import Record, begun, progress_bar
from prunegym.scripts.options.benchmark import BenchmarkConfig
from prunegym.scripts.tables import print_table

MAX_STATIC_RATIO = 0.9  # static ratio of a group
INNER = ("*.conv1",)  # of each block: its inner channels
WITHOUT_INPUTS = ("none", "merging-released", "lbyl", "folding")  # look at the weights alone
CALIBRATIONS = ("noise", "layerwise", "distilled", "data")
ON_IMAGES = ("least-squares-progressive", "distillation")  # need images that the dense network runs on
IMAGES = ("distilled", "data")


@dataclass(frozen=True)
class Setting:
    """Groups to prune, and how much: by one ratio for all, or within a budget spent evenly."""

    name: str
    only: tuple[str, ...] = ()
    ratio: float | None = None
    macs: float | None = None


SETTINGS = (
    Setting("inner 30 %", INNER, ratio=0.3),
    Setting("inner 50 %", INNER, ratio=0.5),
    Setting("inner 70 %", INNER, ratio=0.7),
    Setting("MACs 70 %", macs=0.7),
    Setting("MACs 50 %", macs=0.5),
)


def rows() -> Iterator[tuple[str, Method]]:
    """Yield (calibration, method): by l1, as published; what runs images by elimination as well."""
    for compensation in COMPENSATIONS:
        for calibration in CALIBRATIONS[:1] if compensation in WITHOUT_INPUTS else CALIBRATIONS:
            if calibration in IMAGES or compensation not in ON_IMAGES:  # noise: the row of least squares
                yield calibration, Method("l1", compensation)
            if calibration in IMAGES and compensation in (*ON_IMAGES, "least-squares"):
                yield calibration, Method("elimination", compensation)


def measure(config: BenchmarkConfig) -> dict[str, Any]:
    """Return, by network, its dense accuracy, seconds to calibrate, and a cell per row and setting."""
    record = begun(config)
    for name in config.networks or WEIGHTS:
        found = record.results.setdefault(name, {"calibration_s": {}, "cells": {}})
        with _empty_cache():
            for calibration in CALIBRATIONS:
                missing = [
                    (method, setting)
                    for source, method in rows()
                    for setting in SETTINGS
                    if source == calibration and _key(calibration, method, setting) not in found["cells"]
                ]
                if missing:
                    _measure_calibration(name, config, calibration, missing, record)
    return record.results


@contextmanager
def _empty_cache() -> Iterator[None]:
    """Keep synthetic images of earlier runs away, whose making would cost no time."""
    before = os.environ.get("PRUNEGYM_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PRUNEGYM_CACHE"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["PRUNEGYM_CACHE"]
            else:
                os.environ["PRUNEGYM_CACHE"] = before


def _key(calibration: str, method: Method, setting: Setting) -> str:
    source = "-" if method.compensation in WITHOUT_INPUTS else calibration
    return "/".join((method.compensation, source, method.criterion, setting.name))


def _measure_calibration(
    name: str,
    config: BenchmarkConfig,
    calibration: str,
    missing: list[tuple[Method, Setting]],
    record: Record,
) -> None:
    found = record.results[name]
    start = time.perf_counter()
    task = cifar_task(name, config, labelled=calibration == "data", calibration=calibration)
    networks: dict[tuple[str, ...], PrunableNetwork] = {}
    networks[()] = PrunableNetwork(task.model, task.calibration)
    found["calibration_s"][calibration] = round(time.perf_counter() - start, 1)
    networks[INNER] = PrunableNetwork(task.model, task.calibration, only=INNER)
    found["dense"] = accuracy_on(task.model, task.splits.test)
    label = f"{name} {calibration}"
    for method, setting in progress_bar(missing, shown=config.progress, desc=label, leave=False):
        network = networks[setting.only]
        if setting.ratio is not None:
            plan = network.space.even_plan({"channels": setting.ratio})
        else:
            assert setting.macs is not None
            plan = static_plan(network, setting.macs, max_static_ratio=MAX_STATIC_RATIO)
        torch.manual_seed(0)
        start = time.perf_counter()
        small = network.apply(plan, method=method)
        seconds = time.perf_counter() - start
        found["cells"][_key(calibration, method, setting)] = {
            "accuracy": accuracy_on(small.model, task.splits.test),
            "seconds": round(seconds, 3),
            "macs": network.cost.shares(small.levels)["macs"],
        }
        record.keep()


def show(record: Mapping[str, Any]) -> None:
    """Print a table per network: accuracy, and seconds to carry the plan out."""
    settings = [setting.name for setting in SETTINGS]
    for name, found in record.items():
        calibrating = ", ".join(f"{key} {value} s" for key, value in found["calibration_s"].items())
        rows = []
        for row in dict.fromkeys(key.rpartition("/")[0] for key in found["cells"]):
            cells = [found["cells"].get(f"{row}/{setting}") for setting in settings]
            figures = [f"{100 * cell['accuracy']:.1f}" if cell else "" for cell in cells]
            rows.append([*row.split("/"), *figures, f"{max(cell['seconds'] for cell in cells if cell):.2f}"])
        method = ("compensation", "calibration", "criterion")
        print_table(
            f"{name}, dense {found['dense']:.1%}, 500 test images; tracing and calibrating: {calibrating}",
            (*method, *settings, "s"),
            rows,
            left=method,
        )
