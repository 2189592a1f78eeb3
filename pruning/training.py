"""Train a dense network, and keep the embedded default's in a cache."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from pruning.data import Images, load_splits
from pruning.errors import PruningError, WeightsError
from pruning.files import cache_folder, written_whole
from pruning.networks import resolve_network
from pruning.threads import one_thread
from pruning.weights import load_weights_

_log = logging.getLogger(__name__)

_DIGITS_NETWORK = "digits_resnet"
_DIGITS_RECIPE: dict[str, Any] = {"epochs": 30, "batch_size": 32, "weight_decay": 5e-3, "shift": 1}
_DIGITS_VERSION = 1  # raise it when the network, its data or `train_dense` changes the weights that come out


def train_dense(
    model: nn.Module,
    images: Images,
    *,
    epochs: int,
    learning_rate: float = 0.1,
    batch_size: int = 64,
    weight_decay: float = 5e-4,
    shift: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> nn.Module:
    """Return a trained copy of `model` in eval mode; `model` and torch's global generator stay as they were.

    SGD with Nesterov momentum, cosine schedule, cross entropy with label smoothing. The same seed gives the
    same weights on the same torch build and kind of processor.

    Args:
        model: starts from the weights it has.
        images: with labels; seen once an epoch, in a new order each time.
        epochs: passes over the images.
        learning_rate: of the first step.
        batch_size: the most images in a step; batches differ by at most one image.
        weight_decay: on all parameters.
        shift: each batch is moved by up to so many pixels either way.
        seed: of the order, the shifts, and whatever the network draws (dropout).
        progress: show a bar on stderr if that is a terminal.

    Raises:
        PruningError: the loss became NaN or infinite.
    """
    model = copy.deepcopy(model).train()
    device = next(model.parameters()).device
    n_batches = -(-len(images) // batch_size)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=learning_rate, momentum=0.9, nesterov=True, weight_decay=weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * n_batches)
    shown = progress and sys.stderr.isatty()
    with _seeded(seed):
        for epoch in tqdm(range(epochs), desc="training", unit="epoch", disable=not shown, leave=False):
            for batch in torch.randperm(len(images)).tensor_split(n_batches):
                x = _shifted(images.images[batch], shift).to(device)
                loss = functional.cross_entropy(
                    model(x), images.labels[batch].to(device), label_smoothing=0.1
                )
                _check_loss(loss, epoch, learning_rate)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return model.eval()


def dense_digits(cache: Path | None = None, *, progress: bool = False) -> nn.Module:
    """Return the embedded default's dense network in eval mode: from the cache, or trained and put there.

    It learns from the training and calibration images of `digits`, and from no others.

    Args:
        cache: a folder; `$SECATEUR_CACHE`, `$XDG_CACHE_HOME/secateur` or `~/.cache/secateur` unless given.
        progress: show a bar while training.
    """
    network = resolve_network(_DIGITS_NETWORK)
    with _seeded(0):
        model = network.build()
    path = (cache or cache_folder()) / f"{_DIGITS_NETWORK}-{_fingerprint(model)}.safetensors"
    if path.exists():
        try:
            load_weights_(model, path)
            return model.eval()
        except WeightsError as error:
            _log.warning("training the dense network anew, since its cached weights are unusable: %s", error)
    splits = load_splits("digits", network)
    learned_from = _joined(splits.train, splits.calibration)
    with one_thread():
        model = train_dense(model, learned_from, **_DIGITS_RECIPE, progress=progress)
    _store(model, path)
    return model


def _fingerprint(model: nn.Module) -> str:
    """Return a short hash of what decides the weights: another recipe or width gets another file."""
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    determined_by = json.dumps([_DIGITS_VERSION, _DIGITS_RECIPE, shapes])
    return hashlib.sha256(determined_by.encode()).hexdigest()[:12]


def _store(model: nn.Module, path: Path) -> None:
    try:
        with written_whole(path) as temporary:
            save_file(model.state_dict(), temporary)
    except OSError as error:  # a read-only home must not stop the work
        _log.warning("the dense network is not cached and will be trained again next time: %s", error)


def _joined(first: Images, second: Images) -> Images:
    return Images(torch.cat([first.images, second.images]), torch.cat([first.labels, second.labels]))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generators, which initialisation and dropout draw from, for the block only."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def _shifted(images: Tensor, shift: int) -> Tensor:
    if shift == 0:
        return images
    height, width = images.shape[-2:]
    top, left = torch.randint(2 * shift + 1, (2,)).tolist()
    padded = functional.pad(images, (shift,) * 4, mode="replicate")
    return padded[..., top : top + height, left : left + width]


def _check_loss(loss: Tensor, epoch: int, learning_rate: float) -> None:
    if not torch.isfinite(loss):
        raise PruningError(
            f"training diverged in epoch {epoch + 1}: the loss is {loss.item()}; "
            f"try a learning rate below {learning_rate:g}, and check the images"
        )
