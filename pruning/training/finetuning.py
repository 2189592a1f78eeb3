"""Train a compressed network, its runtime gates included, on labels or to follow the dense network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunegym.pruning.data import Images
from prunegym.pruning.errors import PruningError
from prunegym.pruning.metrics import accuracy, predictions
from prunegym.pruning.modes import evaluating, taking_gradients
from prunegym.pruning.registry import unknown_name
from prunegym.pruning.runtime.gates import gates_of
from prunegym.pruning.runtime.per_input import find_per_input_policy
from prunegym.pruning.training.batch_norms import (
    KEPT,
    REESTIMATED,
    TRAINED,
    batch_norms_of,
    check_statistics,
    reestimate_,
)
from prunegym.pruning.training.checkpoints import fingerprint, read_checkpoint, write_checkpoint
from prunegym.pruning.training.distributed import SINGLE_PROCESS, ProcessGroup
from prunegym.pruning.training.loop import EpochRecord, LossOf, TrainingConfig, TrainingLoop, seeded
from prunegym.pruning.training.optimizers import warmed_up

PARTS = ("all", "gates")
TEMPERATURE = 2.0  # that softens the logits of both networks in distillation
MAX_NORM = 5.0  # of the gradient; a network just cut may start with a steep one


@dataclass(frozen=True)
class FinetuningConfig(TrainingConfig):
    """The settings that decide what weights fine-tuning ends with; see `TrainingConfig` for the others."""

    epochs: int = 5  # passes over the images, those before an interruption included
    precision: str = "auto"  # losses and statistics are float32 in any case
    part: str = "all"  # train `all` parameters, or only those of the runtime `gates`
    schedule: str = "cosine"  # one of SCHEDULES, after a short warm-up
    # statistics of BatchNorms are `kept`; or `reestimated` on the images at first, then kept; or `trained`:
    # they follow the batches, of which a process sees its share
    batch_norms: str = KEPT


@dataclass(frozen=True)
class RunControl:
    """Processes, checkpoint and callback of a fine-tuning run; none of them changes the weights it ends with.

    Args:
        processes: the processes that train the network together; the first one writes checkpoints, calls
            `on_epoch` and shows the bar.
        checkpoint: the file to which the run is saved after each epoch; all processes must see it.
        resume: continue the run saved in `checkpoint`, if there is one; the weights come out as if there had
            been no interruption.
        on_epoch: called after each epoch, when its checkpoint is written; what it raises ends the run. A run
            that goes on calls it with the last epoch before, which an interruption may have kept from it.
    """

    processes: ProcessGroup = SINGLE_PROCESS
    checkpoint: Path | None = None
    resume: bool = False
    on_epoch: Callable[[EpochRecord], None] | None = None


@torch.enable_grad()  # whatever the caller is doing
def finetune_(
    model: nn.Module,
    images: Images,
    config: FinetuningConfig = FinetuningConfig(),
    *,
    teacher: nn.Module | None = None,
    validation: Images | None = None,
    control: RunControl = RunControl(),
    progress: bool = False,
) -> tuple[EpochRecord, ...]:
    """Train a compressed network in place; return its epochs, those before an interruption included.

    The network is in evaluation mode afterwards; torch's global generators stay as they were.

    Args:
        model: the compressed network; after an error, other than of a wrong argument, of no more use.
        images: the training images; each is seen once an epoch, in a new order each time.
        config: the settings of the run.
        teacher: the dense network, on the same device. With it the loss is the divergence of the softened
            logits, and labels play no part; without it the cross entropy.
        validation: images held out, on which the accuracy is measured after each epoch.
        control: processes, checkpoint and callback of the run.
        progress: show a bar on stderr if that is a terminal.

    Raises:
        UnknownNameError: there is no such part, optimizer, schedule, precision or way with BatchNorms.
        DataError: there is no image.
        PruningError: the network has no gates or no BatchNorm, the teacher has other classes, the checkpoint
            is damaged or of another run, or the loss became NaN or infinite.
    """
    parameters = trained_parameters(model, config.part)
    check_statistics(model, config.batch_norms)
    processes, checkpoint = control.processes, control.checkpoint
    loop = TrainingLoop(
        parameters,
        images,
        config,
        _loss(model, teacher),
        schedule_of=warmed_up(config.schedule),
        max_norm=MAX_NORM,
        processes=processes,
    )
    run = {"part": config.part, "distillation": teacher is not None, "images": len(images)}
    run |= {**asdict(config), "learning_rate": config.highest_rate, "initial weights": fingerprint(model)}
    saved = read_checkpoint(checkpoint, run) if checkpoint is not None and control.resume else None
    if config.batch_norms == REESTIMATED and not saved:
        reestimate_(model, images, processes)
    with (
        seeded(config.seed, parameters[0].device),
        _learning(model, parameters, config.batch_norms),
        evaluating(*([teacher] if teacher else [])),
    ):
        history = saved.restore_(model, loop) if saved else []
        if history and control.on_epoch is not None and not processes.number:
            control.on_epoch(history[-1])
        for epoch in loop.epochs(done=len(history), progress=progress and not processes.number):
            if validation is not None:
                epoch = replace(epoch, accuracy=accuracy(*predictions(model, validation.batches())))
            history.append(epoch)
            if checkpoint is not None and not processes.number:
                write_checkpoint(checkpoint, run, model, loop, history)
            if control.on_epoch is not None and not processes.number:
                control.on_epoch(history[-1])
    return tuple(history)


def trained_parameters(model: nn.Module, part: str) -> list[nn.Parameter]:
    """Return the parameters that fine-tuning a part of a network trains; never those of a per-input policy.

    Raises:
        UnknownNameError: there is no such part.
        PruningError: the network has no gates.
    """
    if part not in PARTS:
        raise unknown_name("part", part, PARTS)
    gates = gates_of(model)
    if part == "gates" and gates is None:
        raise PruningError("the network has no runtime gates to train; train all of it, or prune at run time")
    ratios = find_per_input_policy(gates)
    policy = set() if ratios is None else set(ratios.parameters())
    trained = model if gates is None or part == "all" else gates
    return [parameter for parameter in trained.parameters() if parameter not in policy]


def softened_divergence(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return the mean KL(teacher || network) at TEMPERATURE, times its square (Hinton et al. 2015).

    Raises:
        PruningError: the two, [images, classes], differ in shape.
    """
    if logits.shape != teacher_logits.shape:
        raise PruningError(
            f"the teacher returned logits {list(teacher_logits.shape)}, the network {list(logits.shape)}; "
            "give the dense network that it was cut from"
        )
    own, target = (functional.log_softmax(each / TEMPERATURE, dim=1) for each in (logits, teacher_logits))
    return TEMPERATURE**2 * functional.kl_div(own, target, reduction="batchmean", log_target=True)


def _loss(model: nn.Module, teacher: nn.Module | None) -> LossOf:
    if teacher is None:
        return lambda images, labels: functional.cross_entropy(model(images).float(), labels)

    def follow(images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = teacher(images)
        return softened_divergence(model(images).float(), wanted.float())

    return follow


@contextmanager
def _learning(model: nn.Module, parameters: Sequence[nn.Parameter], batch_norms: str) -> Iterator[None]:
    """Put modules in training mode, BatchNorms if asked, and let only these parameters take gradients.

    Only modules without children change their mode: branches that a network runs in training alone, such as
    auxiliary heads, were neither traced nor cut.
    """
    for module in model.modules():
        if next(module.children(), None) is None:
            module.train()
    if batch_norms != TRAINED:
        for module in batch_norms_of(model):
            module.eval()
    try:
        with taking_gradients(model, parameters):
            yield
    finally:
        model.eval()
        gates = gates_of(model)
        if gates is not None:
            gates.forget()
