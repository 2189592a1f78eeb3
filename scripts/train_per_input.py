"""Learn a policy that sets runtime ratios for each input; write network, plan, metrics and pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from prunegym.agents.per_input.rounds import (
    LearnedPerInput,
    PerInputComparison,
    PerInputStart,
    compare_with_fixed,
    prepare,
)
from prunegym.envs import Task
from prunegym.envs.input_pruning import loss
from prunegym.pruning.apply import Compressed
from prunegym.pruning.data import Images
from prunegym.pruning.evaluation.comparison import measure_side_by_side
from prunegym.pruning.evaluation.evaluate import Evaluation
from prunegym.pruning.files.plain_data import parse_json, write_json
from prunegym.pruning.files.writing import written_whole
from prunegym.pruning.machine_failures import written_to
from prunegym.pruning.metrics import predictions
from prunegym.pruning.networks.registry import NetworkSpec
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.runtime.outcomes import InputOutcomes, input_outcomes
from prunegym.pruning.storage.compressed import save_compressed
from prunegym.scripts.building import build_network, build_task, measured_on
from prunegym.scripts.cli import run_verb
from prunegym.scripts.options.train_per_input import TrainPerInputConfig, parse
from prunegym.scripts.report import write_pictures
from prunegym.scripts.run_folder import (
    INPUTS,
    METRICS,
    UPDATES,
    begin_run,
    check_out,
    check_source,
    claimed,
    continue_run,
    manifest_of,
)
from prunegym.scripts.tables import print_aside, show

N_EXAMPLES = 8  # images shown of the cheapest, and of the dearest


def run(argv: Sequence[str]) -> None:
    """Run the verb with its command line."""
    config = parse(argv)
    with claimed(config.output.folder):
        check_out(config.output)
        if config.plan:
            check_source(config.plan, config.output.folder)
        torch.manual_seed(config.task.seed)
        _train(config)


def _train(config: TrainPerInputConfig) -> None:
    output = config.output
    plan = CompressionPlan.load(config.plan) if config.plan else None
    task = build_task(config.task, config.budget)
    # all that may be refused comes before the run begins
    start = prepare(
        task,
        build_network(task, config.pruning, seed=config.task.seed),
        config.budget.shares["macs"],
        limits=config.pruning.limits,
        static_ratio=config.static_ratio,
        plan=plan,
    )
    begin_run(output)
    compared = compare_with_fixed(
        start,
        config.rounds,
        out=output.folder,
        resume=output.resume,
        progress=config.task.progress,
        on_update=_appending(output.folder / UPDATES),
        on_learned=partial(continue_run, output),
    )
    _write(config, start, compared)


def _appending(path: Path) -> Callable[[dict[str, float]], None]:
    """Return a function that appends the record of an update to a file, one line each.

    Its first call drops the records that an interrupted run wrote after its last checkpoint.
    """
    begun = False

    def append(record: dict[str, float]) -> None:
        nonlocal begun
        if not begun and path.exists():
            kept, number = [], (record["round"], record["episodes"])
            for line in path.read_bytes().splitlines(keepends=True):
                with suppress(ValueError, KeyError, TypeError):  # a kill may have cut the last line short
                    earlier = parse_json(line)
                    if (earlier["round"], earlier["episodes"]) < number:
                        kept.append(line)
            with written_whole(path) as temporary:
                temporary.write_bytes(b"".join(kept))
        begun = True
        with written_to(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    return append


def _write(config: TrainPerInputConfig, start: PerInputStart, compared: PerInputComparison) -> None:
    out, learned, networks = config.output.folder, compared.learned, compared.networks
    job, test = start.job, start.job.task.splits.test
    rows = measure_side_by_side(job.network, networks, test)
    learned.plan.save(out / "plan.json")
    manifest = manifest_of(job.task, config.task.data, learned.plan, rows.evaluations["per-input"])
    save_compressed(out / "compressed", learned.compressed, manifest)
    found = input_outcomes(learned.compressed.model, test)
    reference = losses(job.task.model, networks["fixed"], test)
    _write_inputs(out / INPUTS, job.task, found, reference, learned)
    gates = [site.group for site in learned.compressed.gates]
    record = {
        "rows": {row: one.to_dict() for row, one in rows.evaluations.items()},
        "gated_groups": rows.gated,
        "verdict": verdict(rows.evaluations),
        "plans": {"fixed": start.plan.to_dict(), "per-input": learned.plan.to_dict()},
        "per_input": {
            "budget": list(config.asked),
            "share": learned.share,
            "share_on_validation": learned.mean_share,
            "macs_quantiles": np.quantile(found.macs, (0, 0.1, 0.5, 0.9, 1)).tolist(),
            "ratios": dict(zip(gates, found.ratios.mean(0).tolist(), strict=True)),
            "spread_of_ratios": dict(zip(gates, found.ratios.std(0).tolist(), strict=True)),
            "inputs_learned_from": sum(one.history.episodes for one in learned.policies),
        },
    }
    write_json(out / METRICS, record)
    curves = out / "tensorboard" / "pictures"
    with written_to(curves), SummaryWriter(str(curves)) as writer:
        for name, picture in write_pictures(out).items():
            writer.add_image(f"input/{name}", picture, dataformats="HWC")
    name = config.task.network.name
    title = f"{name} at {' '.join(config.asked)} on average, {measured_on(config.task)}"
    show(record, title, as_json=config.output.as_json)
    print_aside(f"written to {out}; watch the curves with: tensorboard --logdir {out / 'tensorboard'}")


def verdict(rows: Mapping[str, Evaluation]) -> str:
    """Return one line on how per-input ratios compare with fixed ones."""
    found, fixed = rows["per-input"], rows["fixed"]
    points, spent = 100 * (found.quality - fixed.quality), found.macs / fixed.macs
    return f"per-input against fixed runtime ratios: {points:+.1f} points at {spent:.3f} times the MACs"


def losses(dense: torch.nn.Module, compressed: Compressed, images: Images) -> Tensor:
    """Return the loss of a compressed network against the dense one for each image: [N]."""
    found, _ = predictions(compressed.model, images.batches())
    wanted, _ = predictions(dense, images.batches())
    return loss(found, wanted.log_softmax(1))


def _write_inputs(
    path: Path, task: Task, found: InputOutcomes, reference: Tensor, learned: LearnedPerInput
) -> None:
    """Write the cost and the ratios of each test image, for the pictures."""
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


if __name__ == "__main__":
    sys.exit(run_verb("train-per-input"))
