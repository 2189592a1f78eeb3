"""Measure a network: accuracy, agreement with the dense network, cost."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from pruning.cost import count_params
from pruning.data import Images
from pruning.errors import DataError, one_line
from pruning.modes import evaluating
from pruning.runtime.gates import gates_of
from pruning.runtime.outcomes import input_outcomes
from pruning.runtime.per_input import input_ratios

Batches = Iterable[tuple[Tensor, Tensor]]  # (images [batch, ...], labels [batch])
ScoreFunction = Callable[[nn.Module], float]  # of a network in evaluation mode; higher is better


@dataclass(frozen=True)
class Evaluation:
    """What came of a plan. Shares are of the dense network."""

    accuracy: float | None  # 0 to 1; None without labels
    macs: int  # for one image, the mean where images differ; of what gates skip, none
    params: int
    bytes: int  # of the weights file
    latency_ms: float | None = None  # median for one image, as deployed; None where it was not measured
    agreement: float | None = None  # without labels: share of images on which the dense network says the same
    score: float | None = None  # what the user's function says, where that takes the place of images

    @property
    def quality(self) -> float:
        """What plans are compared by: the score, the accuracy or, without labels, the agreement."""
        found = [one for one in (self.score, self.accuracy, self.agreement) if one is not None]
        return found[0]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Evaluation:
        """Build an evaluation from what `to_dict` returned."""
        return cls(**data)


@torch.inference_mode()
def predictions(model: nn.Module, batches: Batches) -> tuple[Tensor, Tensor]:
    """Return (logits [images, classes], labels [images]) of a network in evaluation mode.

    Raises:
        DataError: there is no image, or the network's output is not one row of logits per image.
    """
    device = next(model.parameters()).device
    with evaluating(model):
        found = [(model(images.to(device)), labels.to(device)) for images, labels in batches]
    if not found:
        raise DataError("there is no image to evaluate on; give at least one")
    logits, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
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
    dense, compressed = (functional.log_softmax(found.double(), dim=1) for found in (dense_logits, logits))
    return float(functional.kl_div(compressed, dense, reduction="batchmean", log_target=True))


def divergences(logits: Tensor, dense_log_probabilities: Tensor) -> Tensor:
    """Return KL(dense || compressed) of each image, in nats: [N], from [N, classes] each."""
    found = functional.kl_div(
        logits.log_softmax(1), dense_log_probabilities, reduction="none", log_target=True
    )
    return found.sum(1)


def weights_bytes(model: nn.Module) -> int:
    """Return the size of the network's weights as a safetensors file."""
    return len(save({name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}))


@torch.no_grad()
def scored(function: ScoreFunction, model: nn.Module) -> float:
    """Return what a user's function says of a network: of a copy, in evaluation mode, without gradients.

    Raises:
        DataError: it raised an error, or returned no finite number.
    """
    try:
        found = float(function(copy.deepcopy(model).eval()))
    except Exception as error:  # a stranger's function may raise anything
        raise DataError(
            f"the score function failed ({type(error).__name__}: {one_line(error)}); "
            "it must return a number for a network"
        ) from error
    if not math.isfinite(found):
        raise DataError(f"the score function returned {found}; it must return a finite number")
    return found


def evaluate(model: nn.Module, judge: Images | ScoreFunction, *, macs: int) -> Evaluation:
    """Measure a network; latency is measured side by side with others (`measure_latency`).

    Args:
        model: the network.
        judge: images with labels, true ones or the dense network's answers; or a score function.
        macs: its multiply-adds, from a CostModel; of one that decides for each input they are measured.

    Raises:
        DataError: see `predictions` and `scored`.
    """
    cost = {"macs": macs, "params": count_params(model), "bytes": weights_bytes(model)}
    if not isinstance(judge, Images):
        return Evaluation(None, **cost, score=scored(judge, model))
    ratios = input_ratios(gates_of(model))
    if ratios is None:
        right = accuracy(*predictions(model, judge.batches()))
    else:
        found = input_outcomes(model, judge)
        right = accuracy(found.logits, found.labels)
        cost["macs"] = round(found.macs.mean() * ratios.prices.dense)
    return Evaluation(right, **cost) if judge.labelled else Evaluation(None, **cost, agreement=right)
