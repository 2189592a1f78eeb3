"""Apply several plans and measure the compressed networks side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from prunegym.pruning.apply import Compressed
from prunegym.pruning.data import Images
from prunegym.pruning.evaluation.evaluate import Evaluation, evaluate
from prunegym.pruning.latency.timing import measure_latency
from prunegym.pruning.metrics import ScoreFunction
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.runtime.gates import gates_of
from prunegym.pruning.runtime.outcomes import input_outcomes
from prunegym.pruning.runtime.per_input import find_per_input_policy
from prunegym.pruning.runtime.slicing import deployed


@dataclass(frozen=True)
class Rows:
    """Networks under comparison, by name."""

    compressed: Mapping[str, Compressed]
    evaluations: Mapping[str, Evaluation]

    @property
    def gated(self) -> dict[str, int]:
        """The number of groups that each network gates at run time."""
        return {name: len(copy.gates) for name, copy in self.compressed.items()}


def measure_rows(
    network: PrunableNetwork, plans: Mapping[str, CompressionPlan], metric: Images | ScoreFunction
) -> Rows:
    """Apply plans to copies of a network and measure these; see `measure_side_by_side`.

    Args:
        network: the dense network.
        plans: name -> plan.
        metric: images to measure on, or a score function.
    """
    return measure_side_by_side(network, {name: network.apply(plan) for name, plan in plans.items()}, metric)


def measure_side_by_side(
    network: PrunableNetwork, compressed: Mapping[str, Compressed], metric: Images | ScoreFunction
) -> Rows:
    """Measure compressed copies of a network, with their latencies in turn within one run.

    Latency is that of the `deployed` form: BatchNorms fused, and units that gates skip are not computed.

    Args:
        network: the dense network.
        compressed: name -> copy.
        metric: images to measure on, one of them for latency; or a score function, and noise for latency.
    """
    models = {name: deployed(copy.model, network.graph.input_shape) for name, copy in compressed.items()}
    image = image_for_latency([copy.model for copy in compressed.values()], metric, network.graph.input_shape)
    latencies = measure_latency(models, image)
    evaluations = {
        name: replace(
            evaluate(copy.model, metric, macs=network.cost.price("macs", copy.levels)),
            latency_ms=latencies[name],
        )
        for name, copy in compressed.items()
    }
    return Rows(compressed, evaluations)


def image_for_latency(
    models: Iterable[nn.Module], metric: Images | ScoreFunction, shape: Sequence[int]
) -> Tensor:
    """Return a typical image of those to measure on, or noise of this shape; on the networks' device."""
    if isinstance(metric, Images):
        return typical_image(models, metric)
    noise = torch.randn((1, *shape), generator=torch.Generator().manual_seed(0))
    return noise.to(next(next(iter(models)).parameters()))


def typical_image(models: Iterable[nn.Module], images: Images) -> Tensor:
    """Return an image, [1, ...] on the networks' device, for which latency is to be measured.

    The one whose multiply-adds are nearest the mean, in the first network that decides for each input; the
    first image where none does.
    """
    index, device = 0, torch.device("cpu")
    for model in models:
        device = next(model.parameters()).device
        if find_per_input_policy(gates_of(model)) is not None:
            macs = input_outcomes(model, images).macs
            index = int(abs(macs - macs.mean()).argmin())
            break
    return images.take(torch.tensor([index])).to(device)
