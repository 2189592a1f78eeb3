"""Stochastic gradient descent over images: the loop that training and fine-tuning share."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from tqdm import tqdm

from prunegym.pruning.data import Images
from prunegym.pruning.errors import DataError, PruningError
from prunegym.pruning.files.state import optimizer_tensors, prefixed, restore_optimizer_, with_prefix
from prunegym.pruning.training.augmentation import Augmentation
from prunegym.pruning.training.distributed import SINGLE_PROCESS, ProcessGroup, add_up_gradients_, share_of
from prunegym.pruning.training.optimizers import OPTIMIZERS
from prunegym.pruning.training.precision import Precision

CPU = torch.device("cpu")
LossOf = Callable[[Tensor, Tensor], Tensor]  # (images [batch, C, H, W], labels [batch]) -> mean loss
ScheduleOf = Callable[[torch.optim.Optimizer, int], LRScheduler]  # of an optimiser and all its steps


@dataclass(frozen=True)
class TrainingConfig:
    """The settings that decide what weights a training run ends with.

    Raises:
        PruningError: a number makes no sense.
    """

    epochs: int  # passes over the images
    learning_rate: float | None = None  # the highest; None: the optimizer's own
    batch_size: int = 64  # the most images in a step, of all processes; batches differ by at most one image
    weight_decay: float = 5e-4  # on all parameters that are trained
    shift: int = 0  # each batch is moved by up to this many pixels either way
    flip: bool = False  # mirror each image half of the time
    optimizer: str = "sgd"  # one of OPTIMIZERS
    precision: str = "float32"  # one of PRECISIONS, of forward passes
    seed: int = 0  # of the order, the augmentation, and the network's own draws (dropout)

    def __post_init__(self) -> None:
        for name, minimum in {"epochs": 1, "batch_size": 1, "shift": 0, "weight_decay": 0}.items():
            value = getattr(self, name)
            if not minimum <= value < math.inf:
                raise PruningError(f"{name} must be {minimum} or more, got {value}")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise PruningError(f"learning_rate must be above 0 and finite, got {self.learning_rate}")

    @property
    def highest_rate(self) -> float:
        """The highest learning rate: the one given, else the optimizer's own."""
        own = OPTIMIZERS[self.optimizer].learning_rate
        return own if self.learning_rate is None else self.learning_rate


@dataclass(frozen=True)
class EpochRecord:
    """Loss, learning rate and accuracy of one pass over the images."""

    number: int  # the first is 1
    loss: float  # mean over the images, each as its batch came up
    learning_rate: float  # of the first step
    accuracy: float | None = None  # on images held out, at its end; None without any


class TrainingLoop:
    """Gradient descent over images, one epoch after the other.

    Order and augmentation of the images come from a generator of its own; what the network draws itself
    (dropout) comes from torch's global ones.

    Args:
        parameters: the parameters that are trained; the loop runs on their device.
        images: the training images; each is seen once an epoch, in a new order each time.
        config: the settings of the run.
        loss_of: runs the network on a batch and returns its loss.
        schedule_of: makes the schedule of the learning rate from the optimizer and the number of steps.
        max_norm: gradients whose norm is larger are scaled down to it.
        processes: the processes that train the network together; each step equals that of one process alone
            up to rounding.

    Raises:
        DataError: there is no image.
        UnknownNameError: there is no such optimizer or precision.
        PruningError: there are fewer images in a batch than processes.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        images: Images,
        config: TrainingConfig,
        loss_of: LossOf,
        *,
        schedule_of: ScheduleOf = CosineAnnealingLR,
        max_norm: float = math.inf,
        processes: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        if not len(images):
            raise DataError("there is no image to train on; give at least one")
        self._parameters = parameters
        self._images = images
        self._config = config
        self._loss_of = loss_of
        self._max_norm = max_norm
        self._precision = Precision(config.precision, parameters[0].device)
        self._processes = processes
        self._draws = torch.Generator().manual_seed(config.seed)
        self._n_batches = -(-len(images) // config.batch_size)
        smallest = len(images) // self._n_batches
        if smallest < processes.count:
            raise PruningError(
                f"{processes.count} processes cannot share {smallest} images; make batches larger"
            )
        build = OPTIMIZERS[config.optimizer].build
        self._optimizer = build(parameters, config.highest_rate, config.weight_decay)
        self._schedule = schedule_of(self._optimizer, config.epochs * self._n_batches)

    def epochs(self, *, done: int = 0, progress: bool = False) -> Iterator[EpochRecord]:
        """Train for the remaining epochs, and yield each when it is over.

        Args:
            done: the number of epochs that are over already.
            progress: show a bar on stderr if that is a terminal.

        Raises:
            PruningError: the loss or its gradient became NaN or infinite.
        """
        total = self._config.epochs
        shown = progress and sys.stderr.isatty()
        numbers = range(done + 1, total + 1)
        with tqdm(
            numbers, "training", total, initial=done, unit="epoch", disable=not shown, leave=False
        ) as bar:
            for number in bar:
                if self._processes.number:  # so that no two processes drop out alike, resumed or not
                    torch.manual_seed(self._config.seed + 1_000_003 * self._processes.number + number)
                rate = float(self._schedule.get_last_lr()[0])
                order = torch.randperm(len(self._images), generator=self._draws)
                loss = 0.0  # summed over the images
                for batch in order.tensor_split(self._n_batches):
                    loss += self._step(batch, number) * len(batch)
                yield EpochRecord(number, loss / len(self._images), rate)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the state between two epochs, random generators included: plain data, and tensors."""
        device = self._parameters[0].device
        plain = {
            "steps": self._schedule.last_epoch,
            "rates": self._schedule.get_last_lr(),
            "scaler": self._precision.scaler.state_dict(),
        }
        tensors = prefixed("optimizer", optimizer_tensors(self._optimizer))
        tensors |= {"draws": self._draws.get_state(), "random": torch.get_rng_state()}
        if device.type == "cuda":
            tensors["random of the GPU"] = torch.cuda.get_rng_state(device)
        return plain, tensors

    def restore_(self, plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        restore_optimizer_(self._optimizer, with_prefix("optimizer", tensors))
        rates = [float(rate) for rate in plain["rates"]]
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._schedule.last_epoch = int(plain["steps"])
        self._schedule._step_count = self._schedule.last_epoch + 1
        self._schedule._last_lr = [*rates]
        self._precision.scaler.load_state_dict(plain["scaler"])
        self._draws.set_state(tensors["draws"])
        torch.set_rng_state(tensors["random"])
        device = self._parameters[0].device
        if device.type == "cuda" and "random of the GPU" in tensors:
            torch.cuda.set_rng_state(tensors["random of the GPU"], device)

    def _step(self, batch: Tensor, epoch: int) -> float:
        """Take a step on the images with these numbers, [batch]; return their mean loss."""
        loss = self._share_of_loss(batch)
        mean = self._processes.total(loss.detach())
        self._check("loss", mean, epoch)
        scaler = self._precision.scaler
        self._optimizer.zero_grad()
        scaler.scale(loss).backward()
        add_up_gradients_(self._processes, self._parameters)
        scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self._parameters, self._max_norm)
        overflown = self._precision.may_overflow and not torch.isfinite(norm)
        if not overflown:
            self._check("norm of its gradient", norm, epoch)
        scaler.step(self._optimizer)  # none if the gradient is not finite
        scaler.update()
        if not overflown:
            self._schedule.step()
        return mean.item()

    def _share_of_loss(self, batch: Tensor) -> Tensor:
        """Return the part of a batch's mean loss that is due to this process's images."""
        device = self._parameters[0].device
        augmentation = Augmentation.draw(
            len(batch), shift=self._config.shift, flip=self._config.flip, generator=self._draws
        )
        share = share_of(self._processes, len(batch))
        mine = batch[share]
        x = augmentation.apply(self._images.take(mine), share).to(device)
        with self._precision.cast():
            loss = self._loss_of(x, self._images.labels[mine].to(device))
        return loss * (len(mine) / len(batch))

    def _check(self, what: str, value: Tensor, epoch: int) -> None:
        if not torch.isfinite(value):
            raise PruningError(
                f"training diverged in epoch {epoch}: the {what} is {value.item()}; "
                f"try a learning rate below {self._config.highest_rate:g}, and check the images"
            )


@contextmanager
def seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Seed torch's global generators, which initialisation and dropout draw from, for the block only.

    Those of the processor and of `device`; no GPU is touched that is not in use, since what follows may fork.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        for gpu in devices:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield
