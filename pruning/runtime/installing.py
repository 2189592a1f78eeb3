"""Attach a per-input policy to a network with gates, and fit its statistics on calibration images."""

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
    """Attach a policy that sets the gates' ratios for each input, in place; at first it follows the plan.

    Args:
        model: a network that is cut, with gates.
        images: calibration images [N, ...], on its device, that define what is typical.
        dense_logits: the dense network's logits for them, [N, classes].
        prices: prices of inputs under the plan that the network was cut by.
        hidden: widths of the policy's layers.
        largest: the largest runtime ratio of a gate.
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
    """Fit the statistics of typical inputs at each gate anew, as after training, in place.

    Args:
        model: a network that decides for each input; for these images its gates do as the plan says.
        images: calibration images [N, ...], on its device.
        dense_logits: the dense network's logits for them, [N, classes].
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
    for index, parts in enumerate(zip(*pooled, strict=True)):
        features, executed = torch.cat(parts), gates.sites[index].executed
        ratios.typical_at(index).fit_(features, seen[index].scores(features), executed, hardness)
    gates.forget()
    ratios.attach_(gates)


def _pooled(gate: RuntimeGate) -> Tensor:
    assert gate.pooled is not None  # a batch has gone through
    return gate.pooled
