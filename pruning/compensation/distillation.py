"""Progressive least squares, then a few steps that train the cut network to follow the dense one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunegym.pruning.compensation.progressive import progressive_, progressive_gated_
from prunegym.pruning.compensation.records import COMPENSATIONS, Compensation, PlannedCut
from prunegym.pruning.modes import evaluating, taking_gradients
from prunegym.pruning.runtime.gates import gates_of

STEPS = 40
BATCH_SIZE = 64
LEARNING_RATE = 1e-3


@torch.enable_grad()  # whatever the caller is doing
def _follow_(model: nn.Module, planned: PlannedCut) -> None:
    """Train all weights of the cut network so that the outputs of layers with removed inputs are as before.

    Features are matched, not logits (docs/decisions.md, D21). BatchNorms keep their statistics. Noise does
    not run through the dense network itself, so there is nothing to follow, and nothing is done.
    """
    inputs = planned.calibration.inputs
    if inputs.reference is not planned.dense:
        return
    images, outputs = torch.cat(inputs.batches), _outputs(planned)
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    generator = torch.Generator().manual_seed(0)
    names = [output.module for output in outputs]
    with (
        evaluating(model, planned.dense),
        _recorded(planned.dense, names) as dense,
        _recorded(model, names) as compressed,
        taking_gradients(model, parameters),
    ):
        for _ in range(STEPS):
            chosen = torch.randint(len(images), (BATCH_SIZE,), generator=generator)
            batch = images[chosen].to(parameters[0].device)
            with torch.no_grad():
                planned.dense(batch)
            model(batch)
            loss = torch.stack([output.distance(dense, compressed) for output in outputs]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    gates = gates_of(model)
    if gates is not None:
        gates.forget()


COMPENSATIONS.register("distillation")(
    Compensation(progressive_, shifts_bias=True, gated_=progressive_gated_, finish_=_follow_)
)


@dataclass(frozen=True)
class _Output:
    """The place where the output of a layer with removed inputs is compared, and its kept channels."""

    module: str  # the layer, or the BatchNorm behind it
    kept: tuple[int, ...] | None  # None: all
    dim: int  # that holds the channels

    def distance(self, dense: dict[str, Tensor], compressed: dict[str, Tensor]) -> Tensor:
        """Return the mean square of the difference, as a share of the dense output's variance."""
        target, output = dense[self.module], compressed[self.module]
        if self.kept is not None:
            target = target.index_select(self.dim, torch.tensor(self.kept, device=target.device))
        variance = target.movedim(self.dim, 0).flatten(1).var(1, correction=0).mean()
        minimum = torch.finfo(variance.dtype).eps * (1 + target.square().mean())  # images may all be alike
        return (output - target).square().mean() / torch.maximum(variance, minimum)


def _outputs(planned: PlannedCut) -> list[_Output]:
    kept = {cut.owner: cut.kept for cut in planned.cuts if cut.axis == "out"}
    outputs = []
    gated = (planned.graph.group(name).readers for name in planned.executed)
    lacking = (cut.owner for cut in planned.cuts if cut.axis == "in")
    for name in dict.fromkeys([*lacking, *(reader.owner for readers in gated for reader in readers)]):
        module = planned.dense.get_submodule(name)
        at = planned.graph.layers[name].batch_norm or name
        outputs.append(_Output(at, kept.get(name), -1 if isinstance(module, nn.Linear) else 1))
    return outputs


@contextmanager
def _recorded(model: nn.Module, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """Yield the output of each of the modules at its last call."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        # a copy: the next operator may work in place
        return lambda module, args, output: outputs.__setitem__(name, output.clone())

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
