"""Carry several plans out and measure them side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pruning.apply import Compressed
from pruning.cost import measure_latency
from pruning.data import Images
from pruning.evaluation import Evaluation, evaluate
from pruning.plan import PruningPlan
from pruning.prunable import PrunableNetwork
from pruning.runtime.slicing import deployed


@dataclass(frozen=True)
class Rows:
    """Networks under comparison, by name."""

    compressed: Mapping[str, Compressed]
    evaluations: Mapping[str, Evaluation]

    @property
    def gated(self) -> dict[str, int]:
        """Return how many groups each network gates at run time."""
        return {name: len(one.gates) for name, one in self.compressed.items()}


def measure_rows(network: PrunableNetwork, plans: Mapping[str, PruningPlan], images: Images) -> Rows:
    """Carry plans out on copies of a network and measure them, their latencies in turn within one run.

    Latency is that of the `deployed` form: BatchNorms fused, and what gates skip is skipped.

    Args:
        network: the dense network.
        plans: name -> plan.
        images: to measure on.
    """
    compressed = {name: network.compress(plan) for name, plan in plans.items()}
    shape, device = network.graph.input_shape, str(next(network.model.parameters()).device)
    models = {name: deployed(one.model, shape) for name, one in compressed.items()}
    latencies = measure_latency(models, shape, device=device)
    evaluations = {
        name: replace(
            evaluate(one.model, images, macs=network.cost.macs(one.widths)), latency_ms=latencies[name]
        )
        for name, one in compressed.items()
    }
    return Rows(compressed, evaluations)
