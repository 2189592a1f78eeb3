"""Train a compressed network, its runtime gates included, on labels or to follow the dense network."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from pruning.data import Images
from pruning.descent import Descent, Epoch, LossOf, Recipe, seeded
from pruning.errors import PruningError
from pruning.files import written_whole
from pruning.lockstep import BATCH_NORMS
from pruning.modes import evaluating, taking_gradients
from pruning.registry import unknown_name
from pruning.runtime.gates import gates_of
from pruning.runtime.per_input import input_ratios

PARTS = ("all", "gates")
TEMPERATURE = 2.0  # that softens the logits of both networks in distillation
MAX_NORM = 5.0  # of the gradient; a network just cut may start with a steep one
WARM_UP_SHARE = 0.1  # of all steps

Checkpoint = Mapping[str, Any]


@torch.enable_grad()  # whatever the caller is doing
def finetune_(
    model: nn.Module,
    images: Images,
    *,
    teacher: nn.Module | None = None,
    part: str = "all",
    epochs: int,
    learning_rate: float = 3e-3,
    batch_size: int = 64,
    weight_decay: float = 5e-4,
    shift: int = 0,
    flip: bool = False,
    seed: int = 0,
    checkpoint: Path | None = None,
    resume: bool = False,
    on_epoch: Callable[[Epoch], None] | None = None,
    progress: bool = False,
) -> tuple[Epoch, ...]:
    """Train a compressed network in place; return its epochs, those before an interruption included.

    SGD with Nesterov momentum, cosine schedule after a short warm-up. BatchNorms keep their statistics. The
    network is in evaluation mode afterwards; torch's global generators stay as they were.

    Args:
        model: the compressed network; after an error, other than of a wrong argument, of no more use.
        images: seen once an epoch, in a new order each time.
        teacher: the dense network, on the same device. With it the loss is the divergence of the softened
            logits, and labels play no part; without it the cross entropy.
        part: `all` parameters, or only those of the runtime `gates`.
        epochs: passes over the images, those before an interruption included.
        learning_rate: the highest.
        batch_size: the most images in a step; batches differ by at most one image.
        weight_decay: on all parameters that are trained.
        shift: each batch is moved by up to so many pixels either way.
        flip: each image is mirrored half of the time.
        seed: of the order, the variation of images, and whatever the network draws (dropout).
        checkpoint: the file that keeps the run after each epoch, or None.
        resume: go on from `checkpoint` if a run was kept there, else begin; the weights come out as if there
            had been no interruption.
        on_epoch: called after each epoch, when its checkpoint is written; what it raises ends the run.
        progress: show a bar on stderr if that is a terminal.

    Raises:
        UnknownNameError: there is no such part.
        DataError: there is no image.
        PruningError: a number makes no sense, the network has no gates, the teacher has other classes, the
            checkpoint is damaged or of another run, or the loss became NaN or infinite.
    """
    recipe = Recipe(epochs, learning_rate, batch_size, weight_decay, shift, flip)
    parameters = trained_parameters(model, part)
    descent = Descent(
        parameters, images, recipe, _loss(model, teacher), schedule_of=_warmed_up_cosine, max_norm=MAX_NORM
    )
    run = {"part": part, "distillation": teacher is not None, "images": len(images), "seed": seed}
    run |= {**asdict(recipe), "initial weights": _fingerprint(model)}
    kept = _read(checkpoint, run) if checkpoint is not None and resume else None
    with seeded(seed), _learning(model, parameters), evaluating(*([teacher] if teacher else [])):
        history = _restore(kept, model, descent) if kept else []
        for epoch in descent.epochs(done=len(history), progress=progress):
            history.append(epoch)
            if checkpoint is not None:
                _write(checkpoint, run, model, descent, history)
            if on_epoch is not None:
                on_epoch(epoch)
    return tuple(history)


def trained_parameters(model: nn.Module, part: str) -> list[nn.Parameter]:
    """Return the parameters that fine-tuning a part of a network trains; never what decides for each input.

    Raises:
        UnknownNameError: there is no such part.
        PruningError: the network has no gates.
    """
    if part not in PARTS:
        raise unknown_name("part", part, PARTS)
    gates = gates_of(model)
    if part == "gates" and gates is None:
        raise PruningError("the network has no runtime gates to train; train all of it, or prune at run time")
    ratios = input_ratios(gates)
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
    found, wanted = (functional.log_softmax(one / TEMPERATURE, dim=1) for one in (logits, teacher_logits))
    return TEMPERATURE**2 * functional.kl_div(found, wanted, reduction="batchmean", log_target=True)


def _loss(model: nn.Module, teacher: nn.Module | None) -> LossOf:
    if teacher is None:
        return lambda images, labels: functional.cross_entropy(model(images), labels)

    def follow(images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = teacher(images)
        return softened_divergence(model(images), wanted)

    return follow


def _warmed_up_cosine(optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
    """Rise linearly to the optimiser's rate, then fall to 0 along half a cosine."""
    warm = max(1, round(WARM_UP_SHARE * steps))

    def share(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return LambdaLR(optimizer, share)


@contextmanager
def _learning(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Train all modules but BatchNorms, and have these parameters alone take gradients, for the block."""
    model.train()
    for module in model.modules():
        if isinstance(module, BATCH_NORMS):
            module.eval()
    try:
        with taking_gradients(model, parameters):
            yield
    finally:
        model.eval()
        gates = gates_of(model)
        if gates is not None:
            gates.forget()


def _fingerprint(model: nn.Module) -> str:
    """Return a hash of the weights: a checkpoint of another network, cut otherwise, must not be loaded."""
    state = {name: tensor.detach().contiguous().clone() for name, tensor in model.state_dict().items()}
    return hashlib.sha256(save(state)).hexdigest()


def _write(
    path: Path, run: Mapping[str, Any], model: nn.Module, descent: Descent, history: list[Epoch]
) -> None:
    state = {
        "run": run,
        "model": model.state_dict(),
        "descent": descent.state_dict(),
        "history": [asdict(epoch) for epoch in history],
    }
    with written_whole(path) as temporary:
        torch.save(state, temporary)


def _read(path: Path, run: Mapping[str, Any]) -> Checkpoint | None:
    """Return the checkpoint in a file, None if there is none; refuse that of another run."""
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        saved = state["run"]
        changed = [name for name in run if saved[name] != run[name]]
    except Exception as error:  # a damaged file fails in a dozen ways, by where it is damaged
        raise PruningError(f"{path} is truncated, damaged, or no checkpoint; start afresh") from error
    if changed:
        raise PruningError(
            f"{path} was made with other {' and '.join(changed)}; repeat them, or start afresh"
        )
    return state


def _restore(kept: Checkpoint, model: nn.Module, descent: Descent) -> list[Epoch]:
    """Set network, optimiser, schedule and random state back; return the epochs that are over."""
    model.load_state_dict(kept["model"])
    descent.load_state_dict(kept["descent"])
    return [Epoch(**epoch) for epoch in kept["history"]]
