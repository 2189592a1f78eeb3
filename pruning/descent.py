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
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from tqdm import tqdm

from pruning.data import Images
from pruning.errors import DataError, PruningError

LossOf = Callable[[Tensor, Tensor], Tensor]  # (images [batch, C, H, W], labels [batch]) -> mean loss
ScheduleOf = Callable[[torch.optim.Optimizer, int], LRScheduler]  # of an optimiser and all its steps


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to descend, and how images are varied on the way."""

    epochs: int
    learning_rate: float
    batch_size: int
    weight_decay: float = 5e-4
    shift: int = 0  # each batch is moved by up to so many pixels either way
    flip: bool = False  # each image is mirrored half of the time

    def __post_init__(self) -> None:
        for name, least in {"epochs": 1, "batch_size": 1, "shift": 0, "weight_decay": 0}.items():
            value = getattr(self, name)
            if not least <= value < math.inf:
                raise PruningError(f"{name} must be {least} or more, got {value}")
        if not 0 < self.learning_rate < math.inf:
            raise PruningError(f"learning_rate must be above 0 and finite, got {self.learning_rate}")


@dataclass(frozen=True)
class Epoch:
    """What came of a pass over the images."""

    number: int  # the first is 1
    loss: float  # mean over the images, each as its batch came up
    learning_rate: float  # of the first step


class Descent:
    """SGD with Nesterov momentum, one epoch after the other; draws from torch's global generators.

    Args:
        parameters: to be trained; they decide the device.
        images: seen once an epoch, in a new order each time.
        recipe: how long, how fast, and how images are varied.
        loss_of: runs the network on a batch.
        schedule_of: of the learning rate, by steps.
        max_norm: longer gradients are cut to this length.

    Raises:
        DataError: there is no image.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        images: Images,
        recipe: Recipe,
        loss_of: LossOf,
        *,
        schedule_of: ScheduleOf = CosineAnnealingLR,
        max_norm: float = math.inf,
    ) -> None:
        if not len(images):
            raise DataError("there is no image to train on; give at least one")
        self._parameters = parameters
        self._images = images
        self._recipe = recipe
        self._loss_of = loss_of
        self._max_norm = max_norm
        self._n_batches = -(-len(images) // recipe.batch_size)
        self._optimizer = torch.optim.SGD(
            parameters,
            lr=recipe.learning_rate,
            momentum=0.9,
            nesterov=True,
            weight_decay=recipe.weight_decay,
        )
        self._schedule = schedule_of(self._optimizer, recipe.epochs * self._n_batches)

    def epochs(self, *, done: int = 0, progress: bool = False) -> Iterator[Epoch]:
        """Descend for the epochs that are left, and yield each when it is over.

        Args:
            done: epochs that are over already.
            progress: show a bar on stderr if that is a terminal.

        Raises:
            PruningError: the loss or its gradient became NaN or infinite.
        """
        total = self._recipe.epochs
        shown = progress and sys.stderr.isatty()
        numbers = range(done + 1, total + 1)
        with tqdm(
            numbers, "training", total, initial=done, unit="epoch", disable=not shown, leave=False
        ) as bar:
            for number in bar:
                yield self._epoch(number)

    def state_dict(self) -> dict[str, Any]:
        """Return what it takes to go on between two epochs, the random state included."""
        cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
        return {
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "random": [torch.get_rng_state(), *cuda],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        cpu, *cuda = state["random"]
        torch.set_rng_state(cpu)
        if cuda and torch.cuda.is_available():
            torch.cuda.set_rng_state(cuda[0])

    def _epoch(self, number: int) -> Epoch:
        rate = float(self._schedule.get_last_lr()[0])
        device = self._parameters[0].device
        total = 0.0
        for batch in torch.randperm(len(self._images)).tensor_split(self._n_batches):
            x = _varied(self._images.take(batch), self._recipe).to(device)
            loss = self._loss_of(x, self._images.labels[batch].to(device))
            self._check("loss", loss, number)
            self._step(loss, number)
            total += loss.item() * len(batch)
        return Epoch(number, total / len(self._images), rate)

    def _step(self, loss: Tensor, epoch: int) -> None:
        self._optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._parameters, self._max_norm)
        self._check("norm of its gradient", norm, epoch)
        self._optimizer.step()
        self._schedule.step()

    def _check(self, what: str, value: Tensor, epoch: int) -> None:
        if not torch.isfinite(value):
            raise PruningError(
                f"training diverged in epoch {epoch}: the {what} is {value.item()}; "
                f"try a learning rate below {self._recipe.learning_rate:g}, and check the images"
            )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generators, which initialisation and dropout draw from, for the block only."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def _varied(images: Tensor, recipe: Recipe) -> Tensor:
    shifted = _shifted(images, recipe.shift)
    if not recipe.flip:
        return shifted
    mirrored = torch.rand(len(images), 1, 1, 1) < 0.5
    return torch.where(mirrored, shifted.flip(-1), shifted)


def _shifted(images: Tensor, shift: int) -> Tensor:
    if shift == 0:
        return images
    height, width = images.shape[-2:]
    top, left = torch.randint(2 * shift + 1, (2,)).tolist()
    padded = functional.pad(images, (shift,) * 4, mode="replicate")
    return padded[..., top : top + height, left : left + width]
