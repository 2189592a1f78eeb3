"""Channel numbers, and tensors of them that shadow a network's activations.

An index tensor has the shape of an activation and names, at each entry, the channel that the entry
belongs to; CONSTANT marks entries that belong to none. Dimensions along which the numbers do not vary
have stride 0, so that most index tensors take no memory and "varies along" is a look at the strides.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CONSTANT = -1


def varying(index: Tensor) -> tuple[int, ...]:
    """Return the dimensions along which a settled index tensor varies."""
    return tuple(d for d in range(index.dim()) if index.size(d) > 1 and index.stride(d) != 0)


def spread(ids: Tensor, shape: Sequence[int], dim: int) -> Tensor:
    """Return the index tensor of `shape` that holds `ids` along `dim` and is constant elsewhere."""
    view = [1] * len(shape)
    view[dim] = -1
    return ids.view(view).expand(tuple(shape))


def profile(index: Tensor, dim: int) -> Tensor:
    """Return the channel numbers along `dim`, at the first place of every other dimension."""
    if not index.numel():  # there is no such place
        return torch.full((index.size(dim),), CONSTANT)
    for other in reversed(range(index.dim())):
        if other != dim:
            index = index.select(other, 0)
    return index


def at_first(index: Tensor, dims: Sequence[int]) -> Tensor:
    """Return the index tensor with each of `dims` narrowed to its first place."""
    for dim in dims:
        index = index.narrow(dim, 0, min(1, index.size(dim)))
    return index


class Channels:
    """All channel numbers of one trace: which are coupled, which are frozen and why."""

    def __init__(self) -> None:
        self._parent = torch.empty(0, dtype=torch.long)
        # numbers that stand for a whole value, and why: they freeze the channels they meet, and couple none
        self._opaque: dict[int, str] = {}
        self._frozen: list[tuple[Tensor, str]] = []

    def create(self, count: int) -> Tensor:
        """Return `count` fresh channel numbers."""
        start = len(self._parent)
        fresh = torch.arange(start, start + count)
        self._parent = torch.cat([self._parent, fresh])
        return fresh

    def opaque(self, shape: Sequence[int], reason: str) -> Tensor:
        """Return an index tensor for a value whose channels are not understood."""
        number = self.create(1)
        self._opaque[int(number)] = reason
        return number.squeeze(0).expand(tuple(shape))

    def find(self, ids: Tensor) -> Tensor:
        """Return the representative of each number; CONSTANT stays."""
        if not len(self._parent):
            return ids
        return torch.where(ids >= 0, self._parent[ids.clamp(min=0)], ids)

    def settle(self, index: Tensor) -> Tensor:
        """Return `index` by representatives, with stride 0 wherever it does not vary."""
        dims = varying(index)
        core = self.find(at_first(index, [d for d in range(index.dim()) if d not in dims]))
        for dim in dims:
            first = at_first(core, [dim])
            if bool((core == first).all()):
                core = first
        return core.expand(index.shape)

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Couple the channels of two index tensors of one shape, entry by entry."""
        pairs = torch.stack([self.find(a).flatten(), self.find(b).flatten()])
        pairs = pairs[:, (pairs[0] != pairs[1]) & (pairs >= 0).all(0)]
        opaque = torch.isin(pairs, torch.tensor(list(self._opaque), dtype=torch.long))
        for number in pairs[opaque].unique().tolist():  # never tied, so it stands for itself
            self.freeze(pairs[:, (pairs == number).any(0)], self._opaque[number])
        low, high = pairs[:, ~opaque.any(0)].aminmax(dim=0)
        while bool((low != high).any()):  # the higher of two follows the lowest it is tied to, if to several
            self._parent.scatter_reduce_(0, high, low, "amin")
            while not torch.equal(jumped := self._parent[self._parent], self._parent):
                self._parent = jumped
            low, high = self.find(torch.stack([low, high])).aminmax(dim=0)

    def freeze(self, ids: Tensor, reason: str) -> None:
        """Forbid to prune the channels in `ids`."""
        dims = varying(ids)
        ids = at_first(ids, [dim for dim in range(ids.dim()) if dim not in dims]).unique()
        self._frozen.append((ids[ids >= 0], reason))

    def frozen_reasons(self) -> dict[int, str]:
        """Return representative -> the first reason that froze it."""
        reasons: dict[int, str] = {}
        for ids, reason in self._frozen:
            for number in self.find(ids).tolist():
                reasons.setdefault(number, reason)
        return reasons

    def separate(self, index: Tensor, *, preferred: Sequence[int] = ()) -> Tensor:
        """Couple channels until the index tensor varies along one dimension only, and return it settled.

        A tensor from which entries were cut must still be a box. The dimension that keeps the most
        choice is kept, among the preferred ones if it varies along any; of equals the last, which is the
        one inside the groups of a channel shuffle.
        """
        index = self.settle(index)
        dims = varying(index)
        if len(dims) < 2:
            return index
        candidates = [dim for dim in dims if dim in preferred] or dims
        keep = max(candidates, key=lambda dim: (len(profile(index, dim).unique()), dim))
        others = [dim for dim in dims if dim != keep]
        first = at_first(index, others).expand(index.shape)
        self.tie(index.contiguous(), first.contiguous())
        mixed = (index >= 0) != (first >= 0)
        if bool(mixed.any()):
            self.freeze(index, "its channels are interleaved with constants")
        return self.settle(index)
