"""How well rewards that need no label rank random plans, against true accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from prunegym.agents.pictures.ranks import rank_correlation
from prunegym.envs import Budget, make_env
from prunegym.scripts.benchmarks.assets import cifar_task
from prunegym.scripts.benchmarks.figures import accuracy_on
from prunegym.scripts.benchmarks.results import progress_bar
from prunegym.scripts.options.benchmark import BenchmarkConfig
from prunegym.scripts.tables import print_table

NETWORKS = ("cifar_resnet20", "cifar_resnet56")
REWARDS = ("agreement", "negative divergence")
PLANS = 60
BUDGETS = (0.35, 0.8)  # of the MACs, drawn anew for each plan
ACTION_SPREAD = 0.5  # of an action, to either side of the uniform plan


def measure(config: BenchmarkConfig) -> dict[str, Any]:
    """Return, by network, the rank correlations and the figures behind them."""
    return {name: _measure_network(name, config) for name in config.networks or NETWORKS}


def _measure_network(name: str, config: BenchmarkConfig) -> dict[str, Any]:
    task = cifar_task(name, config, labelled=False)
    env = make_env(task, seed=config.seed)
    rng = np.random.default_rng(config.seed)
    figures: dict[str, list[float]] = {"accuracy": [], "agreement": [], "divergence": []}
    plans = range(config.episodes or PLANS)
    for _ in progress_bar(plans, shown=config.progress, desc=name, unit="plan", leave=False):
        env.set_budget(Budget({"macs": rng.uniform(*BUDGETS)}))
        env.reset()
        done, info = False, dict[str, Any]()
        while not done:
            action = np.array(
                [-1.0, rng.uniform(-ACTION_SPREAD, ACTION_SPREAD)], dtype=np.float32
            )  # static ratios alone
            _, _, done, _, info = env.step(action)
        result = info["episode_result"]
        small = env.problem.apply(result["plan"])
        figures["accuracy"].append(accuracy_on(small, task.splits.test))
        figures["agreement"].append(result["reward"]["accuracy"])
        figures["divergence"].append(result["reward"]["divergence"])
    true = np.array(figures["accuracy"])
    return {
        "agreement": rank_correlation(np.array(figures["agreement"]), true),
        "negative divergence": rank_correlation(-np.array(figures["divergence"]), true),
        "figures": figures,
    }


def show(record: Mapping[str, Any]) -> None:
    """Print the rank correlations."""
    count = len(next(iter(record.values()))["figures"]["accuracy"])
    rows = []
    for name, row in record.items():
        true = row["figures"]["accuracy"]
        ranks = ("-" if row[reward] is None else f"{row[reward]:.3f}" for reward in REWARDS)
        rows.append((name, *ranks, f"{min(true):.1%}", f"{max(true):.1%}"))
    title = f"rank correlation with accuracy on 500 test images, {count} random plans"
    print_table(title, ("network", *REWARDS, "accuracies from", "to"), rows)
