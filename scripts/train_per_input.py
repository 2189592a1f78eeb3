"""`train --per-input`: what it learns, measures and writes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from prunegym.agents.learning.algorithms import read_overrides
from prunegym.envs import Budget, BudgetRange, Task
from prunegym.envs.input_pruning import loss
from prunegym.pruning.apply import Compressed
from prunegym.pruning.data import Images
from prunegym.pruning.evaluation.comparison import measure_side_by_side
from prunegym.pruning.evaluation.evaluate import Evaluation
from prunegym.pruning.files import write_json, written_whole
from prunegym.pruning.metrics import predictions
from prunegym.pruning.networks.registry import NetworkSpec
from prunegym.pruning.plan import PruningPlan
from prunegym.pruning.runtime.outcomes import InputOutcomes, input_outcomes
from prunegym.pruning.storage.compressed import save_compressed
from prunegym.scripts import options
from prunegym.scripts.per_input import LearnedPerInput, PerInputJob, Settings, learn_ratios
from prunegym.scripts.per_input_checks import plan_to_depart_from, share_of, static_plan, within_reach
from prunegym.scripts.report import write_pictures
from prunegym.scripts.run_folder import INPUTS, METRICS, UPDATES, manifest_of, open_run, run_config, show

PER_INPUT_DEFAULTS = {  # of flags, unless told otherwise
    "algo": "ppo",
    "episodes": 25_000,
    "rounds": 2,
    "max_runtime_ratio": 0.9,
    "compensation": "least-squares-progressive",
}
N_EXAMPLES = 8  # images shown of the cheapest, and of the dearest


def train_per_input(out: Path, args: argparse.Namespace, budget: Budget | BudgetRange) -> None:
    """Learn to decide for each input, and write what came of it.

    Raises:
        UsageError: see `share_of`.
        PruningError: see `plan_to_depart_from`, `apply_plan`, `within_reach` and `static_plan`.
    """
    share = share_of(args, budget)
    given = PruningPlan.load(args.plan) if args.plan else None
    task = options.task_of(args, Budget({"macs": share}))
    network = options.network_of(task, args)
    # all that may be refused comes before the run begins
    plan = plan_to_depart_from(network, args, share, given)
    job = PerInputJob(task, network)
    fixed = job.applied(plan)
    share = within_reach(job, fixed, share, args.max_runtime_ratio)
    static = static_plan(network, share, largest=args.max_static_ratio)
    settings = Settings(
        share=share,
        largest=args.max_runtime_ratio,
        episodes=args.episodes,
        rounds=args.rounds,
        tuning=args.tune_epochs,
        seed=args.seed,
        hyperparameters=read_overrides(args.hyper),
    )
    if not args.resume:
        open_run(out, run_config(args), overwrite=args.overwrite)
    learned = learn_ratios(
        job,
        plan,
        settings,
        out=out,
        resume=args.resume,
        progress=not args.quiet,
        on_update=_appending(out / UPDATES),
    )
    if args.resume:  # not before: a run whose checkpoint is damaged stays as it is
        open_run(out, run_config(args), overwrite=False)
    epochs = args.rounds * args.tune_epochs
    if epochs:
        job.tune_(fixed, epochs, args.seed)
    rows = {
        "dense": job.applied(PruningPlan()),
        "static": job.applied(static, tuning=epochs),
        "fixed": fixed,
        "per-input": learned.compressed,
    }
    _write(out, job, args, rows, learned, plan)


def _appending(path: Path) -> Callable[[dict[str, float]], None]:
    """Return what appends the record of an update to a file of them, a line each.

    The first one takes the place of those that an interrupted run wrote after its last checkpoint.
    """
    begun = False

    def append(record: dict[str, float]) -> None:
        nonlocal begun
        if not begun and path.exists():
            _cut(path, before=record)
        begun = True
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    return append


def _cut(path: Path, *, before: Mapping[str, float]) -> None:
    """Keep the records of earlier updates, in one step; what is no record goes."""
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        with suppress(ValueError, KeyError, TypeError):  # a kill may have cut the last line short
            record = json.loads(line)
            if (record["round"], record["episodes"]) < (before["round"], before["episodes"]):
                kept.append(line)
    with written_whole(path) as temporary:
        temporary.write_bytes(b"".join(kept))


def _write(
    out: Path,
    job: PerInputJob,
    args: argparse.Namespace,
    networks: dict[str, Compressed],
    learned: LearnedPerInput,
    started_from: PruningPlan,
) -> None:
    test = job.task.splits.test
    rows = measure_side_by_side(job.network, networks, test)
    learned.plan.save(out / "plan.json")
    manifest = manifest_of(job.task, args, learned.plan, rows.evaluations["per-input"])
    save_compressed(out / "compressed", learned.compressed, manifest)
    found = input_outcomes(learned.compressed.model, test)
    reference = losses(job.task.model, networks["fixed"], test)
    _write_inputs(out / INPUTS, job.task, found, reference, learned)
    gates = [site.group for site in learned.compressed.gates]
    record = {
        "rows": {row: one.to_dict() for row, one in rows.evaluations.items()},
        "gated_groups": rows.gated,
        "verdict": compared(rows.evaluations),
        "plans": {"fixed": started_from.to_dict(), "per-input": learned.plan.to_dict()},
        "per_input": {
            "budget": args.budget,
            "share": learned.share,
            "share_on_validation": learned.mean_share,
            "macs_quantiles": np.quantile(found.macs, (0, 0.1, 0.5, 0.9, 1)).tolist(),
            "ratios": dict(zip(gates, found.ratios.mean(0).tolist(), strict=True)),
            "spread_of_ratios": dict(zip(gates, found.ratios.std(0).tolist(), strict=True)),
            "inputs_learned_from": sum(one.history.episodes for one in learned.policies),
        },
    }
    write_json(out / METRICS, record)
    with SummaryWriter(str(out / "tensorboard" / "pictures")) as writer:
        for name, picture in write_pictures(out).items():
            writer.add_image(f"input/{name}", picture, dataformats="HWC")
    title = f"{args.model} at {' '.join(args.budget)} on average, {options.judged_on(args)}"
    show(record, title, as_json=args.json)
    print(
        f"written to {out}; watch the curves with: tensorboard --logdir {out / 'tensorboard'}",
        file=sys.stderr,
    )


def compared(rows: Mapping[str, Evaluation]) -> str:
    """Say in a line how deciding for each input compares with fixed ratios."""
    found, fixed = rows["per-input"], rows["fixed"]
    points, spent = 100 * (found.quality - fixed.quality), found.macs / fixed.macs
    return f"per-input against fixed runtime ratios: {points:+.1f} points at {spent:.3f} times the MACs"


def losses(dense: torch.nn.Module, compressed: Compressed, images: Images) -> Tensor:
    """Return how far a compressed network's output is from the dense one's for each image: [N]."""
    found, _ = predictions(compressed.model, images.batches())
    wanted, _ = predictions(dense, images.batches())
    return loss(found, wanted.log_softmax(1))


def _write_inputs(
    path: Path, task: Task, found: InputOutcomes, reference: Tensor, learned: LearnedPerInput
) -> None:
    """Write what each test image took, for the pictures."""
    order = np.argsort(found.macs, kind="stable")
    ends = np.stack([order[:N_EXAMPLES], order[::-1][:N_EXAMPLES]])
    arrays: dict[str, Any] = {
        "macs": found.macs,
        "reference": reference.double().cpu().numpy(),
        "right": (found.logits.argmax(1) == found.labels).cpu().numpy(),
        "ratios": found.ratios,
        "gates": np.array([site.group for site in learned.compressed.gates]),
        "budget": np.float64(learned.share),
        "examples": pixels(
            task.splits.test.take(torch.from_numpy(ends.copy()).flatten()), task.network
        ).reshape(*ends.shape, *task.network.input_shape[1:], task.network.input_shape[0]),
        "examples_macs": found.macs[ends],
    }
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def pixels(images: Tensor, network: NetworkSpec) -> NDArray[np.uint8]:
    """Return images as they were before normalisation: uint8 [N, H, W, C], from [N, C, H, W]."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (network.mean, network.std))
    return (images.cpu() * std + mean).mul(255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
