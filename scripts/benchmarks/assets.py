"""The pretrained CIFAR-10 ResNets that benchmarks measure."""

from __future__ import annotations

from typing import Any

from prunegym.envs import (
    Budget,
    BudgetRange,
    DataSource,
    LayerPruningEnv,
    Limits,
    NetworkSource,
    Task,
    load_task,
    make_env,
)
from prunegym.envs.action import ActionMode
from prunegym.pruning.data import Images
from prunegym.scripts.building import usable_device
from prunegym.scripts.options.benchmark import BenchmarkConfig

WEIGHTS = {
    "cifar_resnet20": "resnet20-12fca82f.th",
    "cifar_resnet32": "resnet32-d509ac18.th",
    "cifar_resnet56": "resnet56-4bfd9763.th",
}

DRAWN_IMAGES = 256  # for each plan; twice as many, as `train` draws, gave equal rewards in 5/3 of the time


def cifar_task(
    name: str,
    config: BenchmarkConfig,
    *,
    labelled: bool = True,
    calibration: str | None = None,
    **settings: Any,
) -> Task:
    """Return the task of a network in `config.assets`.

    Args:
        name: a network in WEIGHTS.
        config: the folder of assets, and the device.
        labelled: whether images decide; else they are only reported on, and all decisions are made without.
        calibration: what statistics are taken on, see `DataSource`.
        settings: further arguments of `load_task`.
    """
    images = f"npz:{config.assets / 'cifar10' / 'cifar10_subset.npz'}"
    return load_task(
        NetworkSource(name, weights=config.assets / "weights" / WEIGHTS[name]),
        data=DataSource(images if labelled else "none", calibration, None if labelled else images),
        device=usable_device(config.device),
        **{"budget": Budget({"macs": 0.5}), **settings},
    )


def comparison_env(
    name: str,
    config: BenchmarkConfig,
    *,
    budget: Budget | BudgetRange,
    only: tuple[str, ...] = (),
    seed: int,
    labelled: bool = True,
    drawn_images: int = DRAWN_IMAGES,
    actions: ActionMode = "centred",
) -> tuple[LayerPruningEnv, Images]:
    """Return the environment in which methods are compared, and the test images.

    Of the networks in WEIGHTS, and the embedded default, `digits_resnet`.

    Static ratios alone. A plan is scored on so many images drawn for it; without data, as in `train`.
    """
    if name == "digits_resnet":
        task = load_task(name, data="digits", budget=budget, device=usable_device(config.device), seed=seed)
    else:
        task = cifar_task(name, config, labelled=labelled, budget=budget, seed=seed)
    drawn: dict[str, Any] = {"drawn_images": drawn_images} if labelled else {}
    env = make_env(
        task,
        limits=Limits({"runtime_ratio": 0.0}),
        only=only,
        actions=actions,
        seed=seed,
        **drawn,
    )
    return env, task.splits.test
