"""Training of dense networks; that of the embedded default is cached."""

from __future__ import annotations

import copy
import hashlib
import json
from collections import deque
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional

from prunegym.pruning.data import Images, joined, load_splits
from prunegym.pruning.files.cache import cache_folder, read_cached, write_cached
from prunegym.pruning.networks.registry import resolve_network
from prunegym.pruning.threads import one_thread
from prunegym.pruning.training.loop import TrainingConfig, TrainingLoop, seeded

_DIGITS_NETWORK = "digits_resnet"
_DIGITS_CONFIG = TrainingConfig(30, learning_rate=0.1, batch_size=32, weight_decay=5e-3, shift=1)
_DIGITS_VERSION = 1  # raise it when the network, its data or `train_dense` changes the trained weights


def train_dense(
    model: nn.Module, images: Images, config: TrainingConfig, *, progress: bool = False
) -> nn.Module:
    """Return a trained copy of `model` in eval mode; `model` and torch's global generator stay as they were.

    Cross entropy with label smoothing; the learning rate falls along a cosine from the first step. The same
    seed gives the same weights on the same torch build and kind of processor.

    Args:
        model: the network; training starts from the weights it has.
        images: labelled images; each is seen once an epoch, in a new order each time.
        config: the settings of the run.
        progress: show a bar on stderr if that is a terminal.

    Raises:
        DataError: there is no image.
        UnknownNameError: there is no such optimizer or precision.
        PruningError: the loss became NaN or infinite.
    """
    model = copy.deepcopy(model).train()

    def loss_of(batch: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(model(batch), labels, label_smoothing=0.1)

    parameters = list(model.parameters())
    loop = TrainingLoop(parameters, images, config, loss_of)
    with seeded(config.seed, parameters[0].device):
        deque(loop.epochs(progress=progress), maxlen=0)
    return model.eval()


def dense_digits(cache: Path | None = None, *, progress: bool = False) -> nn.Module:
    """Return the embedded default's dense network in eval mode: from the cache, or trained and put there.

    It learns from the training and calibration images of `digits`, and from no others.

    Args:
        cache: the cache folder; by default that of `cache_folder`.
        progress: show a bar while training.
    """
    network = resolve_network(_DIGITS_NETWORK)
    with seeded(0):
        model = network.build()
    path = (cache or cache_folder()) / f"{_DIGITS_NETWORK}-{_fingerprint(model)}"
    if (content := read_cached(path)) is not None:
        model.load_state_dict(load(content))
        return model.eval()
    splits = load_splits("digits", network)
    learned_from = joined(splits.train, splits.calibration)
    with one_thread():
        model = train_dense(model, learned_from, _DIGITS_CONFIG, progress=progress)
    write_cached(path, save(model.state_dict()))
    return model


def _fingerprint(model: nn.Module) -> str:
    """Return a short hash of all that decides the weights: another configuration gets another file."""
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    determined_by = json.dumps([_DIGITS_VERSION, asdict(_DIGITS_CONFIG), shapes])
    return hashlib.sha256(determined_by.encode()).hexdigest()[:12]
