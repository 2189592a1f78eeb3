"""Measure a network, dense or compressed, on its test images."""

from __future__ import annotations

import argparse
import json
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
from prunegym.pruning.files import write_json
from prunegym.pruning.graph import find_groups
from prunegym.pruning.latency.timing import measure_latency
from prunegym.pruning.metrics import ScoreFunction
from prunegym.pruning.networks.registry import NetworkSpec
from prunegym.pruning.runtime.slicing import deployed
from prunegym.pruning.storage.compressed import LoadedNetwork, load_compressed
from prunegym.scripts import options
from prunegym.scripts.cli import run_verb
from prunegym.scripts.run_folder import METRICS, check_empty, claimed, compressed_folder, open_run, show_rows


def build_parser() -> options.Parser:
    """Return the parser of this verb."""
    parser = options.Parser("evaluate", __doc__ or "")
    options.add_network_flags(parser)
    parser.set_defaults(model=None, data=None)
    parser.add_argument("--compressed", type=Path, metavar="DIR", help="a folder that train or prune wrote")
    options.add_score_flag(parser)
    options.add_output_flags(parser)
    return parser


def run(argv: Sequence[str]) -> None:
    """Carry the verb out."""
    args = build_parser().parse(argv)
    with claimed(args.out) if args.out else nullcontext():
        _evaluate(args)


def _evaluate(args: argparse.Namespace) -> None:
    if args.out is not None:
        check_empty(args.out, overwrite=args.overwrite)
    evaluation, gated = _compressed(args) if args.compressed else _dense(args)
    if args.out is not None:
        open_run(args.out, options.plain(args), overwrite=args.overwrite)
        write_json(args.out / METRICS, evaluation.to_dict())
    if args.json:
        print(json.dumps(evaluation.to_dict()))
    else:
        name = str(args.compressed or args.model)
        show_rows(
            f"{name}, {options.judged_on(args)}",
            {"measured": evaluation.to_dict()},
            gated={"measured": gated},
        )


def _dense(args: argparse.Namespace) -> tuple[Evaluation, int]:
    args.model, args.data = args.model or "digits_resnet", _images_of(args, "digits")
    task = options.task_of(args, Budget({"macs": 1.0}))
    macs = find_groups(task.model, task.network.input_shape).macs
    return _timed(task.model, task.test_metric, task.network, macs), 0


def _compressed(args: argparse.Namespace) -> tuple[Evaluation, int]:
    options.refuse_dense(args)
    loaded = load_compressed(compressed_folder(args.compressed), network=args.model)
    metric = options.score_of(args) or _test_images(args, loaded)
    model = loaded.model.to(options.device_of(args))
    evaluation = _timed(model, metric, loaded.network, loaded.manifest.evaluation.macs)
    return evaluation, len(loaded.gates)


def _test_images(args: argparse.Namespace, loaded: LoadedNetwork) -> Images:
    if loaded.manifest.evaluation.score is not None and args.data is None:
        raise options.UsageError(
            "this network was judged by a score function; name it with --score, or images with --data"
        )
    args.data = _images_of(args, loaded.manifest.data)
    splits = options.splits_of(args, loaded.network)
    check_labels(splits, count_classes(loaded.model, loaded.network))
    return splits.test


def _images_of(args: argparse.Namespace, default: str) -> str:
    """Return the name of the images to evaluate on."""
    name = args.data or default
    if name == "none" and not args.score:
        raise options.UsageError("accuracy needs images with labels; name some with --data")
    return name


def _timed(model: nn.Module, metric: Images | ScoreFunction, network: NetworkSpec, macs: int) -> Evaluation:
    image = image_for_latency([model], metric, network.input_shape)
    latency = measure_latency({"it": deployed(model, network.input_shape)}, image)["it"]
    return replace(evaluate(model, metric, macs=macs), latency_ms=latency)


if __name__ == "__main__":
    sys.exit(run_verb("evaluate"))
