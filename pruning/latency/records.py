"""Records of a latency table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LayerTimes:
    """Milliseconds of one layer at some of its possible widths.

    Raises:
        ValueError: the times are of another shape than the widths, not finite, or fall with a width.
    """

    layers: tuple[str, ...]  # those of this shape, once for each call
    inputs: tuple[int, ...]  # ascending, the last of the dense layer; of a depthwise one that alone
    outputs: tuple[int, ...]
    milliseconds: tuple[tuple[float, ...], ...]  # [inputs, outputs], of one call

    def __post_init__(self) -> None:
        times = np.array(self.milliseconds, dtype=np.float64)
        if times.shape != (len(self.inputs), len(self.outputs)):
            raise ValueError(f"{self.layers[0]}: there must be a time for each pair of widths")
        if not np.isfinite(times).all() or any((np.diff(times, axis=axis) < 0).any() for axis in (0, 1)):
            raise ValueError(f"{self.layers[0]}: times must be finite and rise with the widths")

    @property
    def dense(self) -> float:
        """Milliseconds of one call of the dense layer."""
        return self.milliseconds[-1][-1]


@dataclass(frozen=True)
class WholeFit:
    """Linear fit of a whole network's milliseconds to the sum over its layers.

    The rest of the network, such as activations and joins, is taken to cost a time for each value that a
    layer writes, and a constant.
    """

    scale: float
    per_value: float
    constant: float

    def __call__(self, layers: float, values: float) -> float:
        """Return milliseconds, from those of all layers and the number of values that they write."""
        return self.scale * layers + self.per_value * values + self.constant


@dataclass(frozen=True)
class LatencyTable:
    """The times of one network on one device, by the widths of its layers."""

    key: Mapping[str, Any]  # the network and the device, see `table_key`
    layers: tuple[LayerTimes, ...]
    whole: WholeFit
    dense: float  # measured milliseconds of the whole dense network
    errors: tuple[float, ...]  # of shares predicted, of plans that `whole` was not fitted to; +0.1: 10 % high

    @property
    def usual_error(self) -> float:
        """Median of the errors without their signs."""
        return float(np.median(np.abs(self.errors)))

    @property
    def worst_error(self) -> float:
        """Largest of the errors without their signs."""
        return float(np.abs(self.errors).max())

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LatencyTable:
        """Build a table from what `to_dict` returned, also after a round trip through JSON.

        Raises:
            KeyError, TypeError, ValueError: it is no such data.
        """
        layers = (
            LayerTimes(
                tuple(entry["layers"]),
                tuple(entry["inputs"]),
                tuple(entry["outputs"]),
                tuple(map(tuple, entry["milliseconds"])),
            )
            for entry in data["layers"]
        )
        whole, errors = WholeFit(**data["whole"]), tuple(data["errors"])
        if not errors or not all(map(math.isfinite, [*errors, *data["whole"].values(), data["dense"]])):
            raise ValueError("errors and the fit must be finite numbers")
        return cls(data["key"], tuple(layers), whole, data["dense"], errors)


def rising(times: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    """Return times, [inputs, outputs], of which none is above that of a wider layer.

    Whatever else the machine does only adds to a time: where a wider layer was faster, its time counts.
    """
    for axis in (0, 1):
        times = np.flip(np.minimum.accumulate(np.flip(times, axis), axis), axis)
    return tuple(map(tuple, times.tolist()))


def fit_whole(layers: Sequence[float], values: Sequence[float], measured: Sequence[float]) -> WholeFit:
    """Return the least squares fit of relative errors, no coefficient below zero.

    Args:
        layers: milliseconds of all layers, for each network.
        values: values that the layers write, for each network.
        measured: milliseconds of each whole network.
    """
    columns = np.stack([layers, values, np.ones(len(measured))], 1) / np.array(measured)[:, None]
    fits = []
    for chosen in ([0], [0, 1], [0, 2], [0, 1, 2]):  # with three, the best subset is soon found
        part = np.linalg.lstsq(columns[:, chosen], np.ones(len(measured)), rcond=None)[0]
        if (part >= 0).all():
            coefficients = np.zeros(3)
            coefficients[chosen] = part
            fits.append((float(np.square(columns @ coefficients - 1).sum()), coefficients.tolist()))
    return WholeFit(*min(fits)[1])
