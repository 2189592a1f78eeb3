"""Measure a network, dense or compressed, on its test images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from torch import nn

from prunegym.envs import Budget, count_classes
from prunegym.pruning.data import Images, check_labels
from prunegym.pruning.evaluation.comparison import image_for_latency
from prunegym.pruning.evaluation.evaluate import Evaluation, evaluate
from prunegym.pruning.files.plain_data import write_json
from prunegym.pruning.graph import find_groups
from prunegym.pruning.latency.timing import measure_latency
from prunegym.pruning.metrics import ScoreFunction
from prunegym.pruning.networks.registry import NetworkSpec
from prunegym.pruning.runtime.slicing import deployed
from prunegym.pruning.storage.compressed import LoadedNetwork, load_compressed
from prunegym.pruning.user_functions import named_function
from prunegym.scripts.building import (
    build_splits,
    build_task,
    compressed_folder,
    measured_on,
    usable_device,
)
from prunegym.scripts.cli import run_verb
from prunegym.scripts.options.evaluate import EvaluateConfig, parse
from prunegym.scripts.options.parser import UsageError
from prunegym.scripts.run_folder import METRICS, check_empty, claimed, open_run
from prunegym.scripts.tables import print_json, show_rows


def run(argv: Sequence[str]) -> None:
    """Run the verb with its command line."""
    config = parse(argv)
    output = config.output
    with claimed(output.folder) if output else nullcontext():
        if output:
            check_empty(output.folder, overwrite=output.overwrite)
        if config.compressed:
            evaluation, gated = _compressed(config, config.compressed)
        else:
            task, gated = build_task(config.task, Budget({"macs": 1.0})), 0
            macs = find_groups(task.model, task.network.input_shape).macs
            evaluation = _timed(task.model, task.test_metric, task.network, macs)
        row = evaluation.to_dict()
        if output:
            open_run(output.folder, output.flags, overwrite=output.overwrite)
            write_json(output.folder / METRICS, row)
    if config.as_json:
        print_json(row, indent=None)
    else:
        title = f"{config.compressed or config.task.network.name}, {measured_on(config.task)}"
        show_rows(title, {"measured": row}, gated={"measured": gated})


def _compressed(config: EvaluateConfig, folder: Path) -> tuple[Evaluation, int]:
    """Return what is measured of a compressed network, and how many groups it gates."""
    loaded = load_compressed(compressed_folder(folder), network=config.model)
    score = config.task.score
    metric = named_function(score) if score else _test_images(config, loaded)
    model = loaded.model.to(usable_device(config.task.device))
    return _timed(model, metric, loaded.network, loaded.manifest.evaluation.macs), len(loaded.gates)


def _test_images(config: EvaluateConfig, loaded: LoadedNetwork) -> Images:
    if loaded.manifest.evaluation.score is not None and config.data is None:
        raise UsageError(
            "this network was judged by a score function; name it with --score, or images with --data"
        )
    data = replace(config.task.data, spec=config.data or loaded.manifest.data)
    if data.spec == "none":
        raise UsageError("accuracy needs images with labels; name some with --data")
    splits = build_splits(config.task, data, loaded.network)
    check_labels(splits, count_classes(loaded.model, loaded.network))
    return splits.test


def _timed(model: nn.Module, metric: Images | ScoreFunction, network: NetworkSpec, macs: int) -> Evaluation:
    image = image_for_latency([model], metric, network.input_shape)
    latency = measure_latency({"it": deployed(model, network.input_shape)}, image)["it"]
    return replace(evaluate(model, metric, macs=macs), latency_ms=latency)


if __name__ == "__main__":
    sys.exit(run_verb("evaluate"))
