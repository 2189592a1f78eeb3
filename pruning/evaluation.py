"""Measure a network: accuracy, agreement with the dense network, cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from pruning.cost import count_params
from pruning.data import Images
from pruning.errors import DataError
from pruning.modes import evaluating
from pruning.runtime.gates import gates_of
from pruning.runtime.outcomes import input_outcomes
from pruning.runtime.per_input import input_ratios

Batches = Iterable[tuple[Tensor, Tensor]]  # (images [batch, ...], labels [batch])


@dataclass(frozen=True)
class Evaluation:
    """What came of a plan. Shares are of the dense network."""

    accuracy: float | None  # 0 to 1; None without labels
    macs: int  # for one image, the mean where images differ; of what gates skip, none
    params: int
    bytes: int  # of the weights file
    latency_ms: float | None = None  # median for one image, as deployed; None where it was not measured
    agreement: float | None = None  # without labels: share of images on which the dense network says the same

    @property
    def score(self) -> float:
        """What plans are compared by: the accuracy or, without labels, the agreement."""
        found = self.agreement if self.accuracy is None else self.accuracy
        assert found is not None  # one of them is always measured
        return found

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


def evaluate(model: nn.Module, images: Images, *, macs: int) -> Evaluation:
    """Measure a network on images; latency is measured side by side with others (`measure_latency`).

    Args:
        model: the network.
        images: with labels, true ones or the dense network's answers.
        macs: its multiply-adds, from a CostModel; of one that decides for each input they are measured.
    """
    ratios = input_ratios(gates_of(model))
    if ratios is None:
        right = accuracy(*predictions(model, images.batches()))
    else:
        found = input_outcomes(model, images)
        right, macs = accuracy(found.logits, found.labels), round(found.macs.mean() * ratios.prices.dense)
    return Evaluation(
        accuracy=right if images.labelled else None,
        agreement=None if images.labelled else right,
        macs=macs,
        params=count_params(model),
        bytes=weights_bytes(model),
    )
