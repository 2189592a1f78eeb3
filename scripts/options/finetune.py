"""The flags of `finetune`, and their record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunegym.envs import DataSource, NetworkSource
from prunegym.pruning.training.batch_norms import KEPT, REESTIMATED, STATISTICS
from prunegym.pruning.training.finetuning import PARTS, FinetuningConfig
from prunegym.pruning.training.optimizers import OPTIMIZERS, SCHEDULES
from prunegym.pruning.training.precision import PRECISIONS
from prunegym.scripts.options.network import (
    TaskConfig,
    add_compressed_flag,
    add_eval_data_flag,
    add_model_flags,
    check_eval_data,
)
from prunegym.scripts.options.output import OutputConfig, add_output_flags, output_config
from prunegym.scripts.options.parser import Parser, UsageError, number, whole

LABELS, DISTILLATION = "labels", "distillation"


@dataclass(frozen=True)
class FinetuneConfig:
    """A compressed network, what it learns from, and how."""

    compressed: Path
    model: str | None  # FILE.py:FACTORY, where that is what was compressed
    weights: Path | None  # of the dense network
    data: str | None  # by default the images that it was measured on
    eval_data: str | None
    download: bool
    learn: str  # from LABELS, or by DISTILLATION
    validate: bool  # leave the validation images out
    part: str  # what is trained
    training: FinetuningConfig | None  # None: reestimate BatchNorm statistics, and no more
    seed: int
    device: str
    progress: bool
    output: OutputConfig

    def task(self, network: NetworkSource, *, data: str) -> TaskConfig:
        """Return the network that was compressed, and its images where --data names none.

        Raises:
            UsageError: --eval-data is given beside data of its own, or there are no labels to learn from.
        """
        images = DataSource(self.data or data, eval_data=self.eval_data, download=self.download)
        check_eval_data(images)
        if images.spec == "none" and self.learn == LABELS:
            raise UsageError(
                f"there are no labels without images; name some with --data, or use --learn {DISTILLATION}"
            )
        return TaskConfig(network, images, None, self.seed, self.device, self.progress)


def build_parser() -> Parser:
    """Return the parser of this verb."""
    parser = Parser(
        "finetune",
        "Train a compressed network, its runtime gates included, on labels or to follow the dense network.",
    )
    add_compressed_flag(parser)
    add_model_flags(parser, compressed=True)
    add_eval_data_flag(parser)
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
    _add_training_flags(parser)
    add_output_flags(parser, resume=True)
    return parser


def _add_training_flags(parser: Parser) -> None:
    parser.add_argument(
        "--epochs", type=whole(0, 1_000_000), default=5, metavar="N", help="passes over the images (5)"
    )
    parser.add_argument("--optimizer", choices=list(OPTIMIZERS), default="sgd", help="default sgd")
    rates = ", ".join(f"{OPTIMIZERS[name].learning_rate:g} for {name}" for name in OPTIMIZERS)
    parser.add_argument(
        "--lr", type=number(1e-12, 1000), metavar="R", help=f"highest learning rate ({rates})"
    )
    parser.add_argument(
        "--schedule", choices=list(SCHEDULES), default="cosine", help="of the rate, after a warm-up (cosine)"
    )
    parser.add_argument(
        "--weight-decay",
        type=number(0, 100),
        default=5e-4,
        metavar="R",
        help="of all that is trained (0.0005)",
    )
    parser.add_argument(
        "--batch-size",
        type=whole(1, 1_000_000),
        default=64,
        metavar="N",
        help="images in a step, of all processes (64)",
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
    parser.add_argument(
        "--shift", type=whole(0, 10_000), default=0, metavar="N", help="move images by up to N pixels (0)"
    )
    parser.add_argument("--flip", action="store_true", help="mirror half of the images")


def parse(argv: Sequence[str]) -> FinetuneConfig:
    """Return the record of a command line and its YAML file.

    Raises:
        UsageError: a flag is unknown or missing, its value wrong, or --out would replace what is trained.
        PruningError: a setting of the training is out of range.
    """
    flags = build_parser().parse(argv)
    if flags.lr is None:
        flags.lr = OPTIMIZERS[flags.optimizer].learning_rate
    if flags.compressed is None:
        raise UsageError("name the folder of the compressed network with --compressed")
    training = None
    if flags.epochs or flags.batch_norms != REESTIMATED:
        training = FinetuningConfig(
            epochs=flags.epochs,
            learning_rate=flags.lr,
            batch_size=flags.batch_size,
            weight_decay=flags.weight_decay,
            shift=flags.shift,
            flip=flags.flip,
            optimizer=flags.optimizer,
            precision=flags.precision,
            seed=flags.seed,
            part=flags.part,
            schedule=flags.schedule,
            batch_norms=flags.batch_norms,
        )
    return FinetuneConfig(
        compressed=flags.compressed,
        model=flags.model,
        weights=flags.weights,
        data=flags.data,
        eval_data=flags.eval_data,
        download=flags.download,
        learn=flags.learn,
        validate=flags.validate,
        part=flags.part,
        training=training,
        seed=flags.seed,
        device=flags.device,
        progress=not flags.quiet,
        output=output_config(flags, resume=flags.resume),
    )
