"""Tasks, networks and environments, built from the records of a verb."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunegym.envs import (
    Budget,
    BudgetRange,
    DataSource,
    LayerPruningEnv,
    NetworkSource,
    Task,
    load_task,
    make_env,
)
from prunegym.envs.budget import measures_of
from prunegym.pruning.data import ImageSplits, load_splits
from prunegym.pruning.latency import LatencyTable, latency_table
from prunegym.pruning.measures import MEASURES
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.networks.registry import NetworkSpec, resolve_network
from prunegym.pruning.networks.weights import built_with
from prunegym.pruning.surgery.verification import trace
from prunegym.pruning.user_functions import named_function
from prunegym.scripts.options.network import TaskConfig
from prunegym.scripts.options.parser import UsageError
from prunegym.scripts.options.pruning import PruningConfig


def usable_device(name: str) -> str:
    """Return the torch device of this name; "auto" is a GPU if there is one.

    Raises:
        UsageError: there is no such device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, TypeError) as error:
        cause = str(error).splitlines()[0]
        raise UsageError(f"--device {name} cannot be used here ({cause}); try auto or cpu") from error
    return name


def build_task(config: TaskConfig, budget: Budget | BudgetRange) -> Task:
    """Return the task of a network within a budget.

    Raises:
        UsageError: there is no such device.
        PruningError: see `load_task`.
    """
    return load_task(
        config.network,
        data=config.data,
        budget=budget,
        score=named_function(config.score) if config.score else None,
        device=usable_device(config.device),
        seed=config.seed,
        progress=config.progress,
    )


def build_splits(config: TaskConfig, data: DataSource, network: NetworkSpec) -> ImageSplits:
    """Return images for a network that is known already."""
    return load_splits(data.spec, network, seed=config.seed, download=data.download, progress=config.progress)


def build_dense(config: NetworkSource, *, seed: int | None = None) -> tuple[nn.Module, NetworkSpec]:
    """Return a network in evaluation mode, its weights at random if none are named, and how to build it."""
    spec = resolve_network(config.name, input_size=config.input_size, mean=config.mean, std=config.std)
    if seed is not None:
        torch.manual_seed(seed)
    model = spec.build() if config.weights is None else built_with(spec, config.weights)
    return model.eval(), spec


def build_network(task: Task, pruning: PruningConfig, *, seed: int) -> PrunableNetwork:
    """Return a task's network, traced and calibrated."""
    return PrunableNetwork(
        task.model,
        task.calibration,
        method=pruning.method,
        only=pruning.only,
        protect=pruning.protect,
        seed=seed,
    )


def build_env(task: Task, config: TaskConfig, pruning: PruningConfig, **settings: Any) -> LayerPruningEnv:
    """Return a task's environment; `settings` are further arguments of `LayerPruningEnv`."""
    if any(MEASURES[name].needs_table for name in measures_of(task.budget)):
        settings["latency"] = build_latency_table(
            task.model, task.network.input_shape, progress=config.progress
        )
    return make_env(
        task,
        method=pruning.method,
        limits=pruning.limits,
        only=pruning.only,
        protect=pruning.protect,
        seed=config.seed,
        **settings,
    )


def build_latency_table(
    model: nn.Module, input_shape: Sequence[int], *, remeasure: bool = False, progress: bool
) -> LatencyTable:
    """Return the latency table of a network on its device, measured where it is not cached."""
    return latency_table(model, trace(model, input_shape), remeasure=remeasure, progress=progress)


def compressed_folder(path: Path) -> Path:
    """Return a compressed network's folder: `path/compressed` where `path` is a run's folder, else `path`."""
    return path / "compressed" if (path / "compressed").is_dir() else path


def measured_on(config: TaskConfig) -> str:
    """Return what figures are measured on, for a title."""
    if config.score:
        return f"by {config.score}"
    if config.data.spec == "none" and config.data.eval_data is None:
        return "on synthetic images: agreement with the dense network"
    return "on the test images"
