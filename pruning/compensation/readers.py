"""Shared by every refit of a reader: the weights that may change, and where a shift of the mean goes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prunegym.pruning.compensation.records import PlannedCut
from prunegym.pruning.graph import LayerShape
from prunegym.pruning.surgery.cutting import TRANSPOSED


def grouped_rows(module: Any) -> Tensor:
    """Return a layer's weight, [conv groups, cout / groups, dimensions]."""
    return module.weight.detach().flatten(1).unflatten(0, (getattr(module, "groups", 1), -1))


def kept_dimensions(kept: Tensor, cin: int, kernel: int) -> Tensor:
    """Return which entries of a row of a reader's flattened weight are kept: [cin * kernel], bool.

    Args:
        kept: kept input channels, of all conv groups.
        cin: input channels of one conv group.
        kernel: positions in the kernel.
    """
    inner = kept[kept < cin]  # the pattern repeats in every conv group
    return torch.zeros(cin, dtype=torch.bool).index_fill_(0, inner, True).repeat_interleave(kernel)


def takes_refit(model: nn.Module, planned: PlannedCut, name: str) -> bool:
    """Return whether a layer's weights may change: a shift of its output's mean must have somewhere to go.

    A layer whose inputs are not cut must not gain a bias, since the price of a plan does not count one.
    """
    module: Any = model.get_submodule(name)
    is_cut = any(cut.owner == name and cut.axis == "in" for cut in planned.cuts)
    shifts = is_cut or planned.graph.layers[name].batch_norm is not None or module.bias is not None
    return shifts and not isinstance(module, TRANSPOSED)


@torch.no_grad()
def shift_output_(model: nn.Module, layer: LayerShape, shift: Tensor) -> None:
    """Add a constant to a layer's output: in the BatchNorm that alone follows it, else in its bias."""
    if layer.batch_norm is not None:
        batch_norm: Any = model.get_submodule(layer.batch_norm)
        batch_norm.running_mean -= shift.to(batch_norm.running_mean)
        return
    module: Any = model.get_submodule(layer.name)
    shift = shift.to(module.weight)
    if module.bias is None:
        module.bias = nn.Parameter(shift)
    else:
        module.bias += shift


@torch.no_grad()
def restore_(model: nn.Module, planned: PlannedCut, name: str) -> None:
    """Restore a layer's dense weights, and the BatchNorm mean or bias that least squares has moved."""
    module: Any = model.get_submodule(name)
    dense: Any = planned.dense.get_submodule(name)
    module.weight.copy_(dense.weight)
    batch_norm = planned.graph.layers[name].batch_norm
    if batch_norm is not None:
        mean: Any = planned.dense.get_submodule(batch_norm).running_mean
        model.get_submodule(batch_norm).running_mean.copy_(mean)  # type: ignore[operator]
    elif dense.bias is None:
        module.bias = None
    else:
        module.bias.copy_(dense.bias)
