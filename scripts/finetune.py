"""Train a compressed network, its runtime gates included, on labels or to follow the dense network."""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from envs import Budget, count_classes, trains_itself
from pruning.cost import measure_latency
from pruning.data import Images, ImageSplits, check_labels, joined, load_splits
from pruning.descent import Epoch, Recipe
from pruning.evaluation import Evaluation, evaluate, predictions
from pruning.files import write_json
from pruning.finetuning import PARTS, finetune_, trained_parameters
from pruning.graph import find_groups
from pruning.measuring import typical_image
from pruning.runtime.gates import gates_of
from pruning.runtime.installing import see_typical_inputs_
from pruning.runtime.outcomes import input_outcomes, keep_budget_
from pruning.runtime.per_input import input_ratios
from pruning.runtime.slicing import deployed
from pruning.saving import LoadedNetwork, load_compressed, save_compressed
from pruning.synthesis import answered
from scripts import options
from scripts.cli import run_verb
from scripts.records import METRICS, check_out, compressed_folder, open_run, run_config, show

LABELS, DISTILLATION = "labels", "distillation"


def build_parser() -> options.Parser:
    """Return the parser of this verb."""
    parser = options.Parser("finetune", __doc__ or "")
    parser.add_argument("--compressed", type=Path, metavar="DIR", help="a folder that train or prune wrote")
    options.add_model_flags(parser, compressed=True)
    options.add_eval_data_flag(parser)
    parser.add_argument("--part", choices=PARTS, default="all", help="what is trained (default all)")
    parser.add_argument(
        "--learn",
        choices=(LABELS, DISTILLATION),
        default=LABELS,
        help="from labels (default), or from the dense network, whose --weights are needed",
    )
    parser.add_argument("--epochs", type=int, default=5, metavar="N", help="passes over the images (5)")
    parser.add_argument("--lr", type=float, default=3e-3, metavar="R", help="highest learning rate (0.003)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images in a step (64)")
    parser.add_argument("--shift", type=int, default=0, metavar="N", help="move images by up to N pixels (0)")
    parser.add_argument("--flip", action="store_true", help="mirror half of the images")
    options.add_output_flags(parser, resume=True)
    return parser


def run(argv: Sequence[str]) -> None:
    """Carry the verb out."""
    args = build_parser().parse(argv)
    recipe = Recipe(args.epochs, args.lr, args.batch_size, shift=args.shift, flip=args.flip)
    source = _source(args)
    loaded = load_compressed(source, network=args.model)
    trained_parameters(loaded.model, args.part)  # refused before the work begins
    _complete(args, loaded)
    check_out(args.out, args)
    material = _material(args, loaded)
    before = copy.deepcopy(loaded.model).to(options.device_of(args))
    share = _mean_share(before, material.validation)
    if not args.resume:
        open_run(args.out, run_config(args), overwrite=args.overwrite)
    epochs = _finetune(loaded.model.to(options.device_of(args)), material, recipe, args)
    if args.resume:  # not before: a run whose checkpoint is damaged stays as it is
        open_run(args.out, run_config(args), overwrite=False)
    if share is not None:  # other features, other decisions
        images = material.validation
        wanted, _ = predictions(material.dense or before, images.batches())
        see_typical_inputs_(loaded.model, images.images.to(options.device_of(args)), wanted)
        keep_budget_(loaded.model, images, share)
    _write(args, loaded, {"before": before, "after": loaded.model}, material, epochs)


def _source(args: argparse.Namespace) -> Path:
    """Return the compressed network's folder; refuse it where the results would replace it."""
    if args.compressed is None:
        raise options.UsageError("name the folder of the compressed network with --compressed")
    if args.out is None:
        raise options.UsageError("name the folder for the results with --out")
    source, out = compressed_folder(args.compressed), args.out.resolve()
    place = source.resolve()
    if out == place or out in place.parents or place in out.parents:
        raise options.UsageError(f"{source} must stay as it is; give an --out elsewhere than {args.out}")
    return source


def _complete(args: argparse.Namespace, loaded: LoadedNetwork) -> None:
    """Fill in what the compressed network's folder knows, and refuse what does not fit it."""
    args.model, args.data = args.model or loaded.manifest.network, args.data or loaded.manifest.data
    network = loaded.network
    args.input_size, args.mean, args.std = list(network.input_shape), list(network.mean), list(network.std)
    options.refuse_eval_data(args)
    if args.data == "none" and args.learn == LABELS:
        raise options.UsageError(
            f"there are no labels without images; name some with --data, or use --learn {DISTILLATION}"
        )


@dataclass(frozen=True)
class _Material:
    """What a network learns from and is judged on."""

    images: Images
    validation: Images  # on which what decides for each input keeps its mean cost
    test: Images
    dense: nn.Module | None  # None where its weights are unknown


def _material(args: argparse.Namespace, loaded: LoadedNetwork) -> _Material:
    """Load or make all images; those to learn from are all but the test images."""
    known = args.weights is not None or trains_itself(loaded.network, args.data)
    if args.learn == LABELS and not known:
        splits = load_splits(args.data, loaded.network, seed=args.seed)
        check_labels(splits, count_classes(loaded.model, loaded.network))
        return _Material(splits.all_but_test(), splits.validation, splits.test, None)
    task = options.task_of(args, Budget({"macs": 1.0}))
    if isinstance(task.splits, ImageSplits):
        known_images = task.splits.all_but_test()
        return _Material(known_images, task.splits.validation, task.splits.test, task.model)
    made = answered(task.model, torch.cat(task.calibration.batches))
    made = joined(made, task.splits.reward, task.splits.validation)
    return _Material(made, task.splits.validation, task.splits.test, task.model)


def _mean_share(model: nn.Module, images: Images) -> float | None:
    """Return what images cost on average, None if the network does not decide for each of them."""
    if input_ratios(gates_of(model)) is None:
        return None
    return float(input_outcomes(model, images).macs.mean())


def _finetune(
    model: nn.Module, material: _Material, recipe: Recipe, args: argparse.Namespace
) -> tuple[Epoch, ...]:
    with closing(_Curves(args.out / "tensorboard")) as curves:
        return finetune_(
            model,
            material.images,
            teacher=material.dense if args.learn == DISTILLATION else None,
            part=args.part,
            **asdict(recipe),
            seed=args.seed,
            checkpoint=args.out / "checkpoint" / "state.pt",
            resume=args.resume,
            on_epoch=curves.write,
            progress=not args.quiet,
        )


class _Curves:
    """Loss and learning rate in TensorBoard; nothing is written before there is something to see."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def write(self, epoch: Epoch) -> None:
        """Add an epoch."""
        self._writer = self._writer or SummaryWriter(str(self._folder))
        self._writer.add_scalar("finetune/loss", epoch.loss, epoch.number)
        self._writer.add_scalar("finetune/learning_rate", epoch.learning_rate, epoch.number)
        self._writer.flush()  # an epoch can take minutes; whoever watches wants to see it now

    def close(self) -> None:
        """Close the log."""
        if self._writer is not None:
            self._writer.close()


def _write(
    args: argparse.Namespace,
    loaded: LoadedNetwork,
    models: dict[str, nn.Module],
    material: _Material,
    epochs: tuple[Epoch, ...],
) -> None:
    rows = _rows(args, loaded, models, material)
    manifest = replace(loaded.manifest, data=args.eval_data or args.data, evaluation=rows["after"])
    save_compressed(args.out / "compressed", loaded, manifest)
    record = {
        "rows": {name: row.to_dict() for name, row in rows.items()},
        "gated_groups": {name: len(loaded.gates) if name in models else 0 for name in rows},
        "epochs": [asdict(epoch) for epoch in epochs],
    }
    write_json(args.out / METRICS, record)
    title = f"{args.compressed} learns from {args.learn}, on {options.judged_on(args)}"
    show(record, title, as_json=args.json)
    print(f"written to {args.out}", file=sys.stderr)


def _rows(
    args: argparse.Namespace, loaded: LoadedNetwork, models: dict[str, nn.Module], material: _Material
) -> dict[str, Evaluation]:
    """Measure all networks; their latencies, as they are deployed, in turn within one run."""
    shape = loaded.network.input_shape
    macs = dict.fromkeys(models, loaded.manifest.evaluation.macs)
    if material.dense is not None:
        models = {"dense": material.dense, **models}
        macs["dense"] = find_groups(material.dense, shape).macs
    fast = {name: deployed(model, shape) for name, model in models.items()}
    latencies = measure_latency(fast, typical_image(models.values(), material.test))
    return {
        name: replace(evaluate(model, material.test, macs=macs[name]), latency_ms=latencies[name])
        for name, model in models.items()
    }


if __name__ == "__main__":
    sys.exit(run_verb("finetune"))
