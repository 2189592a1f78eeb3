"""Records of a traced network: groups of coupled channels, shapes of layers, sizes written into `forward`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import fx


@dataclass(frozen=True, slots=True)
class Member:
    """The positions along one tensor axis that belong to a group.

    `owner` is a layer's name, a parameter's name (with the `axis` it is sliced along), or the key of a
    shape constant. `channels[u]` are the positions of unit `u`: [units, channels per unit].
    """

    owner: str
    channels: tuple[tuple[int, ...], ...]
    axis: int = 0


@dataclass(frozen=True)
class ChannelGroup:
    """Coupled channels, divided into units: a unit's channels are removed together or not at all.

    Writers produce the channels, readers consume them, carriers hold one value per channel (BatchNorm,
    depthwise convolution), parameters do so without a layer around them, constants are sizes written
    into `forward` that count them.
    """

    name: str
    units: int
    writers: tuple[Member, ...]
    carriers: tuple[Member, ...] = ()
    readers: tuple[Member, ...] = ()
    parameters: tuple[Member, ...] = ()
    constants: tuple[Member, ...] = ()
    frozen: str | None = None  # why it must not be pruned; None: it may be
    ungated: str | None = None  # why it takes no runtime gate; None: it may

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the writers, in execution order."""
        return tuple(member.owner for member in self.writers)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ChannelGroup:
        """Build a group from what `to_dict` returned, also after a round trip through JSON."""
        members = {
            role: tuple(
                Member(entry["owner"], tuple(map(tuple, entry["channels"])), entry["axis"])
                for entry in data[role]
            )
            for role in ("writers", "carriers", "readers", "parameters", "constants")
        }
        return cls(**{**data, **members})


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Size and cost of a convolution or linear layer, for one image."""

    name: str
    cin: int
    cout: int
    kernel: int  # positions in the kernel: 9 for 3x3, 1 for a linear layer
    conv_groups: int
    positions: int  # where the kernel is applied, over all calls of the layer
    calls: int
    by_image: bool  # whether the first dimension of its input counts the images
    depthwise: bool
    batch_norm: str | None  # the BatchNorm that alone consumes its output

    @property
    def macs(self) -> int:
        """Multiply-adds for one image; biases are not counted."""
        return self.positions * self.kernel * (self.cin // self.conv_groups) * self.cout


@dataclass(frozen=True, slots=True)
class ShapeConstant:
    """A size written into `forward` that counts channels: it changes when they are removed.

    `path` leads to the literal in the node's arguments, e.g. ("args", 1, 0); for `split` and `chunk`,
    which are rewritten with explicit sizes, it is ("split", piece).
    """

    key: str
    node: str
    path: tuple[str | int, ...]
    size: int


@dataclass(frozen=True)
class ChannelGraph:
    """The structure of a network: its channel groups, layers, shape constants and traced program."""

    groups: tuple[ChannelGroup, ...]  # in the order of their first writers
    layers: Mapping[str, LayerShape]
    constants: Mapping[str, ShapeConstant]
    program: fx.Graph
    input_shape: tuple[int, ...]  # of one image
    other_macs: int = 0  # of convolutions and linear maps that are no layers of torch's own; never cut
    unfollowed: Mapping[str, str] = field(default_factory=dict)  # layers in modules left whole -> why
    protected: frozenset[str] = frozenset()  # layers that the user wants left alone

    @property
    def prunable(self) -> tuple[ChannelGroup, ...]:
        """The groups a plan may prune."""
        return tuple(group for group in self.groups if group.frozen is None)

    @property
    def macs(self) -> int:
        """Multiply-adds of the dense network for one image."""
        return sum(layer.macs for layer in self.layers.values()) + self.other_macs

    def group(self, name: str) -> ChannelGroup:
        """Return the group of that name; the caller has checked that there is one."""
        return next(group for group in self.groups if group.name == name)
