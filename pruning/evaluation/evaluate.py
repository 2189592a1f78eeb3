"""Measure a network: accuracy, agreement with the dense network, cost."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from safetensors.torch import save
from torch import nn

from prunegym.pruning.cost import count_params
from prunegym.pruning.data import Images
from prunegym.pruning.metrics import ScoreFunction, accuracy, predictions, scored
from prunegym.pruning.runtime.gates import gates_of
from prunegym.pruning.runtime.outcomes import input_outcomes
from prunegym.pruning.runtime.per_input import find_per_input_policy


@dataclass(frozen=True)
class Evaluation:
    """Measurements of a network: accuracy, cost and size."""

    accuracy: float | None  # 0 to 1; None without labels
    macs: int  # for one image, the mean where images differ; without skipped units
    params: int
    bytes: int  # of the weights file
    latency_ms: float | None = None  # median for one image, as deployed; None where it was not measured
    agreement: float | None = None  # without labels: share of images on which the dense network says the same
    score: float | None = None  # of the user's function, where it replaces images

    @property
    def quality(self) -> float:
        """The number by which plans are compared: score, accuracy or, without labels, agreement."""
        return next(value for value in (self.score, self.accuracy, self.agreement) if value is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Evaluation:
        """Build an evaluation from what `to_dict` returned.

        Raises:
            OverflowError, TypeError, ValueError: it is no such data.
        """
        found = cls(**data)
        for name, value in data.items():
            whole = name in ("macs", "params", "bytes")
            if value is None and not whole:
                continue
            if type(value) not in ((int,) if whole else (int, float)) or not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value!r}")
            if (value < 0 and name != "score") or (value > 1 and name in ("accuracy", "agreement")):
                raise ValueError(f"{name} cannot be {value!r}")
        return found


def weights_bytes(model: nn.Module) -> int:
    """Return the size of the network's weights as a safetensors file."""
    return len(save({name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}))


def evaluate(model: nn.Module, metric: Images | ScoreFunction, *, macs: int) -> Evaluation:
    """Measure a network; latency is measured side by side with others (`measure_latency`).

    Args:
        model: the network.
        metric: images with labels, true ones or the dense network's answers; or a score function.
        macs: the multiply-adds, from a CostModel; where the network decides for each input they are measured.

    Raises:
        DataError: see `predictions` and `scored`.
    """
    cost = {"macs": macs, "params": count_params(model), "bytes": weights_bytes(model)}
    if not isinstance(metric, Images):
        return Evaluation(None, **cost, score=scored(metric, model))
    ratios = find_per_input_policy(gates_of(model))
    if ratios is None:
        right = accuracy(*predictions(model, metric.batches()))
    else:
        outcomes = input_outcomes(model, metric)
        right = accuracy(outcomes.logits, outcomes.labels)
        cost["macs"] = round(outcomes.macs.mean() * ratios.prices.dense)
    return Evaluation(right, **cost) if metric.labelled else Evaluation(None, **cost, agreement=right)
