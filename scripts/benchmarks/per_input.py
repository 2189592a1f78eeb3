"""Is it better to decide for each input? Static, fixed and per-input ratios at equal average cost."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from prunegym.agents.per_input.rounds import PerInputJob, RoundsConfig, learn_in_rounds, mean_plan
from prunegym.envs import static_plan
from prunegym.pruning.apply import Compressed
from prunegym.pruning.data import Images, ImageSplits
from prunegym.pruning.evaluation.comparison import typical_image
from prunegym.pruning.latency.timing import measure_latency
from prunegym.pruning.method import Method
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.runtime.gates import gates_of
from prunegym.pruning.runtime.outcomes import input_outcomes, keep_budget_
from prunegym.pruning.runtime.per_input import find_per_input_policy
from prunegym.pruning.runtime.slicing import deployed
from prunegym.pruning.training.finetuning import FinetuningConfig, finetune_
from prunegym.scripts.benchmarks.assets import cifar_task
from prunegym.scripts.benchmarks.figures import ahead_by, mean_and_spread, right_answers
from prunegym.scripts.benchmarks.results import begun, run_side_by_side
from prunegym.scripts.options.benchmark import BenchmarkConfig
from prunegym.scripts.tables import print_note, print_table

NETWORKS = ("cifar_resnet20", "cifar_resnet56")
INNER = ("*.conv1",)  # of each block: its inner channels
RATIO, LARGEST = 0.5, 0.9  # of them skipped on average; skipped or removed at most
EPISODES, ROUNDS, SEEDS = 25_000, 2, 3
EPOCHS = 3  # of distillation on the training images
KINDS = ("static", "fixed", "fixed, learned", "per-input")


def measure(config: BenchmarkConfig) -> dict[str, Any]:
    """Return, by network and seed, what came of each kind of ratios, before and after fine-tuning."""
    networks = config.networks or NETWORKS
    record = begun(config, episodes=config.episodes or EPISODES)
    jobs = [(network, str(seed)) for seed in range(SEEDS) for network in networks]
    return run_side_by_side(record, jobs, partial(_run, config), progress=config.progress)


def _run(config: BenchmarkConfig, name: str, seed: str) -> dict[str, Any]:
    start = time.perf_counter()
    task = cifar_task(name, config, seed=int(seed))
    network = PrunableNetwork(
        task.model,
        task.calibration,
        method=Method(compensation="least-squares-progressive"),
        only=INNER,
        seed=int(seed),
    )
    job, test = PerInputJob(task, network), task.splits.test
    plan = network.space.even_plan({"gates": RATIO})
    fixed = job.apply(plan)
    share = network.cost.shares(fixed.levels)["macs"]
    rounds = RoundsConfig(config.episodes or EPISODES, ROUNDS, max_runtime_ratio=LARGEST, seed=int(seed))
    learned = learn_in_rounds(job, plan, rounds, share=share)
    learned_seconds = time.perf_counter() - start
    small = {
        "static": job.apply(static_plan(network, share, max_static_ratio=LARGEST)),
        "fixed": fixed,
        "fixed, learned": job.apply(mean_plan(job, learned.compressed, learned.plan)),
        "per-input": learned.compressed,
    }
    rows = {kind: _row(network, one, test) for kind, one in small.items()}
    assert isinstance(task.splits, ImageSplits)  # there is data
    for kind, one in small.items():
        training = FinetuningConfig(EPOCHS, flip=True, shift=4, seed=int(seed))
        finetune_(one.model, task.splits.all_but_test(), training, teacher=task.model)
        if kind == "per-input":
            keep_budget_(one.model, task.splits.validation, share)
        rows[kind]["tuned"] = _row(network, one, test)
    models = {"dense": task.model, **{kind: one.model for kind, one in small.items()}}
    fast = {kind: deployed(model, network.graph.input_shape) for kind, model in models.items()}
    latency = measure_latency(fast, typical_image([learned.compressed.model], test))
    return {"rows": rows, "latency_ms": latency, "seconds": learned_seconds}


def _row(network: PrunableNetwork, small: Compressed, test: Images) -> dict[str, Any]:
    """Return which test images are right, and the multiply-adds they take, as a share of the dense ones."""
    row = right_answers(small.model, test)
    if find_per_input_policy(gates_of(small.model)) is not None:
        found = input_outcomes(small.model, test)
        return {**row, "macs": float(found.macs.mean()), "macs_std": float(found.macs.std())}
    return {**row, "macs": network.cost.shares(small.levels)["macs"]}


def show(record: Mapping[str, Any]) -> None:
    """Print a table per network: accuracies in percent, and how far per-input ratios are ahead, in points."""
    headings = ("ratios", "MACs", "accuracy", "behind by [95 %]", "tuned", "behind by", "ms, batch 1")
    for name, runs in record.items():
        table = []
        for kind in KINDS:
            rows = [run["rows"][kind] for run in runs.values()]
            others = [run["rows"]["per-input"] for run in runs.values()]
            cells = [kind, f"{100 * np.mean([row['macs'] for row in rows]):.1f} %"]
            for mine, best in (
                (rows, others),
                ([row["tuned"] for row in rows], [row["tuned"] for row in others]),
            ):
                behind = ahead_by([row["right"] for row in best], [row["right"] for row in mine])
                cells += [mean_and_spread(row["accuracy"] for row in mine)]
                cells += [behind if kind != "per-input" else "-"]
            table.append([*cells, f"{_median(runs, kind):.2f}"])
        title = f"{name}, {len(runs)} seeds, tuned by {EPOCHS} epochs of distillation; ms at batch 1"
        print_table(title, headings, table)
        seconds = np.median([run["seconds"] for run in runs.values()])
        print_note(f"dense: {_median(runs, 'dense'):.2f} ms; learning took {seconds:.0f} s a seed")


def _median(runs: Mapping[str, Any], kind: str) -> float:
    return float(np.median([run["latency_ms"][kind] for run in runs.values()]))
