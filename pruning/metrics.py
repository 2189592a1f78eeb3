"""Score a network's outputs: accuracy, divergence from the dense network, or a user's function."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunegym.pruning.errors import DataError
from prunegym.pruning.modes import evaluating
from prunegym.pruning.user_functions import running_users_code

Batches = Iterable[tuple[Tensor, Tensor]]  # (images [batch, ...], labels [batch])


ScoreFunction = Callable[[nn.Module], float]  # of a network in evaluation mode; higher is better


@torch.inference_mode()
def predictions(model: nn.Module, batches: Batches) -> tuple[Tensor, Tensor]:
    """Return (logits [images, classes], labels [images]) of a network in evaluation mode.

    Raises:
        DataError: there is no image, or the network's output is not one row of logits per image.
    """
    device = next(model.parameters()).device
    with evaluating(model):
        pairs = [(model(images.to(device)), labels.to(device)) for images, labels in batches]
    if not pairs:
        raise DataError("there is no image to evaluate on; give at least one")
    logits, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    if logits.dim() != 2 or len(logits) != len(labels):
        raise DataError(
            f"expected logits of shape [images, classes], the network returned {tuple(logits.shape)}"
        )
    return logits, labels


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of images whose largest logit is the label's."""
    return float((logits.argmax(1) == labels).double().mean())


def divergence(logits: Tensor, dense_logits: Tensor) -> float:
    """Return the mean Kullback-Leibler divergence KL(dense || compressed) over images, in nats."""
    dense, compressed = (functional.log_softmax(each.double(), dim=1) for each in (dense_logits, logits))
    return float(functional.kl_div(compressed, dense, reduction="batchmean", log_target=True))


def divergences(logits: Tensor, dense_log_probabilities: Tensor) -> Tensor:
    """Return KL(dense || compressed) of each image, in nats: [N], from [N, classes] each."""
    log_probabilities = logits.log_softmax(1)
    terms = functional.kl_div(log_probabilities, dense_log_probabilities, reduction="none", log_target=True)
    return terms.sum(1)


@torch.no_grad()
def scored(function: ScoreFunction, model: nn.Module) -> float:
    """Return a user's score of a copy of a network, in evaluation mode and without gradients.

    Raises:
        DataError: it raised an error, or returned no finite number.
    """
    failure = "the score function failed ({}); it must return a number for a network"
    with running_users_code(lambda cause: DataError(failure.format(cause))):
        score = float(function(copy.deepcopy(model).eval()))
    if not math.isfinite(score):
        raise DataError(f"the score function returned {score}; it must return a finite number")
    return score
