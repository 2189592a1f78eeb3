"""The pretrained CIFAR-10 ResNets that benchmarks measure."""

from __future__ import annotations

import argparse
from typing import Any

from envs import Budget, Task, load_task
from scripts import options

WEIGHTS = {
    "cifar_resnet20": "resnet20-12fca82f.th",
    "cifar_resnet32": "resnet32-d509ac18.th",
    "cifar_resnet56": "resnet56-4bfd9763.th",
}


def cifar_task(name: str, args: argparse.Namespace, **settings: Any) -> Task:
    """Return the task of a network in `args.assets`; `settings` are further arguments of `load_task`."""
    return load_task(
        name,
        weights=args.assets / "weights" / WEIGHTS[name],
        device=options.device_of(args),
        **{"data": cifar_images(args), "budget": Budget({"macs": 0.5}), **settings},
    )


def cifar_images(args: argparse.Namespace) -> str:
    """Return the images' name, as `load_splits` understands it."""
    return f"npz:{args.assets / 'cifar10' / 'cifar10_subset.npz'}"
