"""The published way to prune statically and at run time at once (Chen et al. 2020), as a baseline."""

from __future__ import annotations

import torch
from torch import Tensor

from prunegym.pruning.runtime.gates import GateSite, RuntimeGate


class TrustGate(RuntimeGate):
    """A gate that prunes what static and runtime importance agree on, and a share of what either would.

    Its number of units that run differs between images. Nothing is removed for good, and nothing is trained:
    gradients do not pass through its choice.
    """

    def __init__(self, site: GateSite, importance: Tensor, *, trust: float) -> None:
        """Start from a site whose `executed` is what either importance alone would leave.

        Args:
            site: where the gate is.
            importance: of each unit for all images, [units].
            trust: weight of the runtime importance, from 0 (static only) to 1 (runtime only).
        """
        super().__init__(site)
        self.register_buffer("importance", importance)
        self.trust = trust

    def forward(self, pooled: Tensor) -> Tensor:
        """Return the mask of executed units: [batch, inputs] -> [batch, units], of ones and zeros."""
        static: Tensor = self.get_buffer("importance").expand(len(pooled), -1)
        return combined_mask(static, self.scores(pooled), self.executed, trust=self.trust)


def combined_mask(static: Tensor, runtime: Tensor, executed: int, *, trust: float) -> Tensor:
    """Combine two importances of the units of some images (equations 3 to 5 of the submission of 2019).

    What is among the least important by both does not run. Of what only one of them would skip, its least
    important share is skipped: `trust` of the runtime importance's own, 1 - `trust` of the static one's.

    Args:
        static: [images, units]; larger means that the unit should rather run.
        runtime: likewise.
        executed: the number of units that either importance alone would let run.
        trust: weight of the runtime importance, 0 to 1.

    Returns:
        [images, units], ones for units that run, else zeros.
    """
    ranks = (one.argsort(dim=1, stable=True).argsort(dim=1) for one in (static, runtime))
    by_static, by_runtime = (rank < static.size(1) - executed for rank in ranks)
    skipped = by_static & by_runtime
    for importance, alone, share in (
        (runtime, by_runtime & ~by_static, trust),
        (static, by_static & ~by_runtime, 1 - trust),
    ):
        rank = importance.masked_fill(~alone, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
        count = (share * alone.sum(dim=1, keepdim=True) + 1e-9).floor()
        skipped = skipped | (alone & (rank < count))
    return (~skipped).to(runtime.dtype)
