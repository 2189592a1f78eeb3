"""Give a network with gates the means to decide for each input, from calibration images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunegym.pruning.data.images import BATCH_SIZE
from prunegym.pruning.metrics import divergences
from prunegym.pruning.modes import evaluating
from prunegym.pruning.runtime.gates import RuntimeGate, gates_of
from prunegym.pruning.runtime.per_input import PerInputPolicy, per_input_policy_of
from prunegym.pruning.runtime.prices import InputPrices


@torch.no_grad()
def attach_per_input_policy_(
    model: nn.Module,
    images: Tensor,
    dense_logits: Tensor,
    *,
    prices: InputPrices,
    hidden: Sequence[int],
    largest: float,
) -> PerInputPolicy:
    """Have a network's gates run what a policy says of each input, in place; at first it says the plan.

    Args:
        model: a network that is cut, with gates.
        images: calibration images [N, ...], on its device, which show what is typical.
        dense_logits: what the dense network says of them, [N, classes].
        prices: of inputs, by the plan it was cut by.
        hidden: widths of the policy's layers.
        largest: runtime ratio of a gate.
    """
    gates = gates_of(model)
    assert gates is not None
    ratios = PerInputPolicy(gates.sites, prices, hidden=hidden, largest=largest)
    ratios = ratios.to(images.device).eval().requires_grad_(False)
    ratios.attach_(gates)
    fit_input_statistics_(model, images, dense_logits)
    return ratios


@torch.no_grad()
def fit_input_statistics_(model: nn.Module, images: Tensor, dense_logits: Tensor) -> None:
    """Learn anew what is typical at each gate, as when weights or gates have been trained; in place.

    Args:
        model: a network that decides for each input; for these images its gates do as the plan says.
        images: calibration images [N, ...], on its device.
        dense_logits: what the dense network says of them, [N, classes].
    """
    gates, ratios = gates_of(model), per_input_policy_of(model)
    assert gates is not None  # or there were no ratios
    for site in gates.sites:
        gates.gate_for(site.group).count_of = None
    seen = [gates.gate_for(site.group) for site in gates.sites]
    logits, pooled = [], []
    with evaluating(model):
        for batch in images.split(BATCH_SIZE):
            logits.append(model(batch))
            pooled.append([_pooled(gate) for gate in seen])
    losses = divergences(torch.cat(logits), dense_logits.log_softmax(1))
    # of losses that span magnitudes, the order matters
    hardness = losses.clamp_min(0).add(1e-3).log()
    for number, parts in enumerate(zip(*pooled, strict=True)):
        features, executed = torch.cat(parts), gates.sites[number].executed
        ratios.typical_at(number).fit_(features, seen[number].scores(features), executed, hardness)
    gates.forget()
    ratios.attach_(gates)


def _pooled(gate: RuntimeGate) -> Tensor:
    assert gate.pooled is not None  # a batch has gone through
    return gate.pooled
