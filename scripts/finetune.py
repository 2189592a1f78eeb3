"""Train a compressed network, its runtime gates included, on labels or to follow the dense network."""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from prunegym.envs import Budget, count_classes, trains_itself
from prunegym.envs.training_data import TrainingData
from prunegym.pruning.data import Images, absolute, check_labels
from prunegym.pruning.evaluation.comparison import typical_image
from prunegym.pruning.evaluation.evaluate import Evaluation, evaluate
from prunegym.pruning.files import write_json
from prunegym.pruning.graph import find_groups
from prunegym.pruning.latency.timing import measure_latency
from prunegym.pruning.metrics import predictions
from prunegym.pruning.runtime.gates import gates_of
from prunegym.pruning.runtime.installing import fit_input_statistics_
from prunegym.pruning.runtime.outcomes import input_outcomes, keep_budget_
from prunegym.pruning.runtime.per_input import find_per_input_policy
from prunegym.pruning.runtime.slicing import deployed
from prunegym.pruning.storage.compressed import LoadedNetwork, load_compressed, save_compressed
from prunegym.pruning.training.batch_norms import KEPT, REESTIMATED, STATISTICS, check_statistics, reestimate_
from prunegym.pruning.training.distributed import ProcessGroup, launched
from prunegym.pruning.training.finetuning import (
    PARTS,
    FinetuningConfig,
    RunControl,
    finetune_,
    trained_parameters,
)
from prunegym.pruning.training.loop import Epoch
from prunegym.pruning.training.optimizers import OPTIMIZERS, SCHEDULES
from prunegym.pruning.training.precision import PRECISIONS
from prunegym.scripts import options
from prunegym.scripts.cli import run_verb
from prunegym.scripts.run_folder import (
    METRICS,
    check_out,
    claimed,
    compressed_folder,
    open_run,
    run_config,
    show,
)

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
    parser.add_argument(
        "--validate",
        action="store_true",
        help="leave the validation images out, and show the accuracy on them after each epoch",
    )
    _add_descent_flags(parser)
    options.add_output_flags(parser, resume=True)
    return parser


def _add_descent_flags(parser: options.Parser) -> None:
    parser.add_argument("--epochs", type=int, default=5, metavar="N", help="passes over the images (5)")
    parser.add_argument("--optimizer", choices=list(OPTIMIZERS), default="sgd", help="default sgd")
    rates = ", ".join(f"{OPTIMIZERS[name].learning_rate:g} for {name}" for name in OPTIMIZERS)
    parser.add_argument("--lr", type=float, metavar="R", help=f"highest learning rate ({rates})")
    parser.add_argument(
        "--schedule", choices=list(SCHEDULES), default="cosine", help="of the rate, after a warm-up (cosine)"
    )
    parser.add_argument(
        "--weight-decay", type=float, default=5e-4, metavar="R", help="of all that is trained (0.0005)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=64, metavar="N", help="images in a step, of all processes (64)"
    )
    parser.add_argument(
        "--batch-norms",
        choices=STATISTICS,
        default=KEPT,
        help="their statistics are kept (default), reestimated on the images at first (with --epochs 0 no "
        "more than that), or trained: follow the batches",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help="of the arithmetic; auto (default): bfloat16 on a GPU that has it, else float32",
    )
    parser.add_argument("--shift", type=int, default=0, metavar="N", help="move images by up to N pixels (0)")
    parser.add_argument("--flip", action="store_true", help="mirror half of the images")


def run(argv: Sequence[str]) -> None:
    """Carry the verb out, alone or as one of several processes that a launcher started."""
    args = build_parser().parse(argv)
    if args.lr is None:
        args.lr = OPTIMIZERS[args.optimizer].learning_rate
    source = _source(args)
    with launched(args.device) as processes, nullcontext() if processes.number else claimed(args.out):
        _run(args, source, processes)


def _run(args: argparse.Namespace, source: Path, processes: ProcessGroup) -> None:
    loaded = load_compressed(source, network=args.model)
    _check(args, loaded.model)
    _complete(args, loaded)
    check_out(args.out, args)
    data = _training_data(args, loaded)
    before = copy.deepcopy(loaded.model).to(options.device_of(args))
    share = _mean_share(before, data.validation)
    processes.wait()  # until all have seen what the folder held
    if not args.resume and not processes.number:
        open_run(args.out, run_config(args), overwrite=args.overwrite)
    epochs = _finetune(loaded.model.to(options.device_of(args)), data, args, processes)
    if processes.number:
        return
    if args.resume:  # not before: a run whose checkpoint is damaged stays as it is
        open_run(args.out, run_config(args), overwrite=False)
    if share is not None:  # other features, other decisions
        images = data.validation
        wanted, _ = predictions(data.dense or before, images.batches())
        typical = images.take(torch.arange(len(images))).to(options.device_of(args))
        fit_input_statistics_(loaded.model, typical, wanted)
        keep_budget_(loaded.model, images, share)
    _write(args, loaded, {"before": before, "after": loaded.model}, data, epochs)


def _training_data(args: argparse.Namespace, loaded: LoadedNetwork) -> TrainingData:
    """Load or make all images.

    Raises:
        PruningError: images or weights are missing, damaged, or do not fit the network.
    """
    known = args.weights is not None or trains_itself(loaded.network.name, args.data)
    if args.learn == LABELS and not known:
        splits = options.splits_of(args, loaded.network)
        check_labels(splits, count_classes(loaded.model, loaded.network))
        return TrainingData.from_splits(splits, validate=args.validate)
    return TrainingData.from_task(options.task_of(args, Budget({"macs": 1.0})), validate=args.validate)


def _check(args: argparse.Namespace, model: nn.Module) -> None:
    """Refuse, before the work begins, what fine-tuning would refuse."""
    trained_parameters(model, args.part)
    check_statistics(model, args.batch_norms)
    if args.epochs or args.batch_norms != REESTIMATED:
        _config(args)


def _config(args: argparse.Namespace) -> FinetuningConfig:
    return FinetuningConfig(
        epochs=args.epochs,
        learning_rate=args.lr,
        batch_size=args.batch_size,
        weight_decay=args.weight_decay,
        shift=args.shift,
        flip=args.flip,
        optimizer=args.optimizer,
        precision=args.precision,
        seed=args.seed,
        part=args.part,
        schedule=args.schedule,
        batch_norms=args.batch_norms,
    )


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


def _mean_share(model: nn.Module, images: Images) -> float | None:
    """Return what images cost on average, None if the network does not decide for each of them."""
    if find_per_input_policy(gates_of(model)) is None:
        return None
    return float(input_outcomes(model, images).macs.mean())


def _finetune(
    model: nn.Module, data: TrainingData, args: argparse.Namespace, processes: ProcessGroup
) -> tuple[Epoch, ...]:
    if not args.epochs:  # which `_check` lets through for this alone
        reestimate_(model, data.images, processes)
        return ()
    with closing(Curves(args.out / "tensorboard")) as curves:
        return finetune_(
            model,
            data.images,
            _config(args),
            teacher=data.dense if args.learn == DISTILLATION else None,
            validation=data.validation if args.validate else None,
            control=RunControl(
                processes, args.out / "checkpoint" / "state.pt", resume=args.resume, on_epoch=curves.write
            ),
            progress=not args.quiet,
        )


def _write(
    args: argparse.Namespace,
    loaded: LoadedNetwork,
    models: dict[str, nn.Module],
    data: TrainingData,
    epochs: tuple[Epoch, ...],
) -> None:
    rows = _rows(args, loaded, models, data)
    manifest = replace(loaded.manifest, data=absolute(args.eval_data or args.data), evaluation=rows["after"])
    save_compressed(args.out / "compressed", loaded, manifest)
    record = {
        "rows": {name: row.to_dict() for name, row in rows.items()},
        "gated_groups": {name: len(loaded.gates) if name in models else 0 for name in rows},
        "epochs": [asdict(epoch) for epoch in epochs],
    }
    write_json(args.out / METRICS, record)
    title = f"{args.compressed} learns from {args.learn}, {options.judged_on(args)}"
    show(record, title, as_json=args.json)
    print(f"written to {args.out}", file=sys.stderr)


def _rows(
    args: argparse.Namespace, loaded: LoadedNetwork, models: dict[str, nn.Module], data: TrainingData
) -> dict[str, Evaluation]:
    """Measure all networks; their latencies, as they are deployed, in turn within one run."""
    shape = loaded.network.input_shape
    macs = dict.fromkeys(models, loaded.manifest.evaluation.macs)
    if data.dense is not None:
        models = {"dense": data.dense, **models}
        macs["dense"] = find_groups(data.dense, shape).macs
    fast = {name: deployed(model, shape) for name, model in models.items()}
    latencies = measure_latency(fast, typical_image(models.values(), data.test))
    return {
        name: replace(evaluate(model, data.test, macs=macs[name]), latency_ms=latencies[name])
        for name, model in models.items()
    }


class Curves:
    """What epochs come to, in TensorBoard; nothing is written before there is something to see."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def write(self, epoch: Epoch) -> None:
        """Add an epoch."""
        self._writer = self._writer or SummaryWriter(str(self._folder))
        for name in ("loss", "learning_rate", "accuracy"):
            value = getattr(epoch, name)
            if value is not None:
                self._writer.add_scalar(f"finetune/{name}", value, epoch.number)
        self._writer.flush()  # an epoch can take minutes; whoever watches wants to see it now

    def close(self) -> None:
        """Close the log."""
        if self._writer is not None:
            self._writer.close()


if __name__ == "__main__":
    sys.exit(run_verb("finetune"))
