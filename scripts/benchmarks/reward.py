"""How well rewards that need no label rank random plans, against true accuracy."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from tqdm import tqdm

from prunegym.envs import Budget, task_env
from prunegym.pruning.metrics import accuracy, predictions
from prunegym.scripts.benchmarks.assets import cifar_images, cifar_task
from prunegym.scripts.options.benchmark import BenchmarkConfig
from prunegym.scripts.results_table import console

NETWORKS = ("cifar_resnet20", "cifar_resnet56")
PLANS = 60
BUDGETS = (0.35, 0.8)  # of the MACs, drawn anew for each plan
ACTION_SPREAD = 0.5  # of an action, to either side of the uniform plan


def measure(config: BenchmarkConfig) -> dict[str, Any]:
    """Return, by network, the rank correlations and the figures behind them."""
    return {name: _measure_network(name, config) for name in config.networks or NETWORKS}


def _measure_network(name: str, config: BenchmarkConfig) -> dict[str, Any]:
    task = cifar_task(name, config, data="none", eval_data=cifar_images(config))
    env = task_env(task, seed=config.seed)
    rng = np.random.default_rng(config.seed)
    figures: dict[str, list[float]] = {"accuracy": [], "agreement": [], "divergence": []}
    shown = config.progress and sys.stderr.isatty()
    for _ in tqdm(range(config.episodes or PLANS), desc=name, unit="plan", disable=not shown, leave=False):
        env.set_budget(Budget({"macs": rng.uniform(*BUDGETS)}))
        env.reset()
        done, info = False, dict[str, Any]()
        while not done:
            action = np.array(
                [-1.0, rng.uniform(-ACTION_SPREAD, ACTION_SPREAD)], dtype=np.float32
            )  # static ratios alone
            _, _, done, _, info = env.step(action)
        result = info["episode_result"]
        small = env.apply(result["plan"])
        figures["accuracy"].append(accuracy(*predictions(small, task.splits.test.batches())))
        figures["agreement"].append(result["reward"]["accuracy"])
        figures["divergence"].append(result["reward"]["divergence"])
    true = np.array(figures["accuracy"])
    return {
        "agreement": rank_correlation(np.array(figures["agreement"]), true),
        "negative divergence": rank_correlation(-np.array(figures["divergence"]), true),
        "figures": figures,
    }


def rank_correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return Spearman's rank correlation; equal values share the mean of their ranks.

    Example:
        >>> rank_correlation(np.array([1.0, 2.0, 9.0]), np.array([2.0, 3.0, 4.0]))
        1.0
    """
    ranks = [_ranks(values) for values in (one, other)]
    centred = [values - values.mean() for values in ranks]
    norm = math.sqrt(float((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum()) / norm


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    below = (values[:, None] > values[None, :]).sum(1)
    equal = (values[:, None] == values[None, :]).sum(1)
    return below + (equal - 1) / 2


def show(record: Mapping[str, Any]) -> None:
    """Print the rank correlations."""
    count = len(next(iter(record.values()))["figures"]["accuracy"])
    table = Table(
        title=f"rank correlation with accuracy on 500 test images, {count} random plans", title_justify="left"
    )
    for heading in ("network", "agreement", "negative divergence", "accuracies from", "to"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for name, row in record.items():
        true = row["figures"]["accuracy"]
        table.add_row(
            name,
            f"{row['agreement']:.3f}",
            f"{row['negative divergence']:.3f}",
            f"{min(true):.1%}",
            f"{max(true):.1%}",
        )
    console().print(table)
