"""Gates that choose, for each input, which of a group's units run; as masks: no work is skipped yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruning.calibration import Calibration
from pruning.graph import ChannelGroup, Member
from pruning.surgery import TRANSPOSED

KeptInputs = Mapping[str, Sequence[int]]  # layer -> input channels that survive the cut, where some do not

GATES = "runtime_gates"  # the submodule that holds a network's gates
RIDGE = 1e-2  # of the mean variance of the pooled input


@dataclass(frozen=True)
class GateSite:
    """Where a gate sits in the cut network: enough to attach it again.

    `places` maps each reader to the gated unit behind each of its input channels, -1 where there is none.
    """

    group: str
    writer: str
    inputs: int  # channels that the writer reads
    units: int  # that survived the cut
    executed: int  # of those, per input
    places: Mapping[str, tuple[int, ...]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GateSite:
        """Build a site from what `to_dict` returned, also after a round trip through JSON."""
        return cls(**{**data, "places": {name: tuple(units) for name, units in data["places"].items()}})


class RuntimeGate(nn.Module):
    """Keeps the units of highest predicted importance for this input (architecture decision 7).

    The importance is linear in the mean over positions of the writer's input. It selects and does not scale,
    so that a gate which executes all units is the exact identity.
    """

    def __init__(self, site: GateSite) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(site.units, site.inputs))
        self.bias = nn.Parameter(torch.zeros(site.units))
        self.executed = site.executed
        self.mask: Tensor | None = None  # [batch, units + 1] for the images in flight; the last column is 1

    def forward(self, pooled: Tensor) -> Tensor:
        """Return the mask of executed units: [batch, inputs] -> [batch, units], of ones and zeros."""
        scores = nn.functional.linear(pooled, self.weight, self.bias)
        chosen = scores.topk(self.executed, dim=1).indices
        return torch.zeros_like(scores).scatter_(1, chosen, 1.0)

    def choose(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Hook before the writer: decide from its input."""
        mask = self(pooled_input(module, args[0]))
        self.mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)


class RuntimeGates(nn.ModuleDict):
    """All gates of a network; passes its input on, since an nn.Sequential runs its last submodule too."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`."""
        return x


@dataclass
class _Silencer:
    """Hook before a reader: sets the channels of skipped units to zero."""

    gate: RuntimeGate
    places: Tensor  # [cin], unit of each input channel, -1 (the column of ones) for channels of other groups

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *others = args
        assert self.gate.mask is not None  # the writer runs before its readers
        mask = self.gate.mask[:, self.places]
        linear = isinstance(module, nn.Linear)
        shape = (len(x), *[1] * (x.dim() - 2), -1) if linear else (len(x), -1, *[1] * (x.dim() - 2))
        return (x * mask.reshape(shape), *others)


def pooled_input(module: nn.Module, x: Tensor) -> Tensor:
    """Return the mean over positions of a layer's input: [batch, channels]."""
    if x.dim() == 2:
        return x
    return x.flatten(1, -2).mean(1) if isinstance(module, nn.Linear) else x.flatten(2).mean(2)


@dataclass(frozen=True)
class FittedGate:
    """A gate's site and the weights that were fitted for it."""

    site: GateSite
    weight: Tensor  # [units, inputs]
    bias: Tensor  # [units]


def attach_gates_(model: nn.Module, sites: Iterable[GateSite]) -> None:
    """Add gates to a cut network, in place, as the submodule `runtime_gates`; their weights are zero."""
    gates = RuntimeGates()
    for site in sites:
        gate = gates[_key(site.group)] = RuntimeGate(site)
        model.get_submodule(site.writer).register_forward_pre_hook(gate.choose)
        for reader, places in site.places.items():
            model.get_submodule(reader).register_forward_pre_hook(_Silencer(gate, torch.tensor(places)))
    if len(gates):
        model.add_module(GATES, gates.to(next(model.parameters()).device))


def load_gates_(model: nn.Module, fitted: Iterable[FittedGate]) -> None:
    """Copy fitted weights into attached gates, in place."""
    for one in fitted:
        gate: Any = model.get_submodule(f"{GATES}.{_key(one.site.group)}")
        gate.weight.data.copy_(one.weight)
        gate.bias.data.copy_(one.bias)


def _key(group: str) -> str:
    return group.replace(".", "/")  # a submodule's name holds no dot


def fit_gate(
    model: nn.Module,
    group: ChannelGroup,
    kept: Tensor,
    executed: int,
    inputs: KeptInputs,
    calibration: Calibration,
) -> FittedGate:
    """Fit one group's gate by ridge regression on the calibration images, without gradients.

    The target is a unit's importance for an image: over its readers, the sum of the root mean square of its
    channels times the norm of the reader's (compensated) weights on them.

    Args:
        model: the compensated network, not yet cut.
        group: which may take a gate.
        kept: its surviving units, ascending.
        executed: how many of them run for each input.
        inputs: layer -> the input channels that survive the cut, where some do not.
        calibration: of the dense network.
    """
    pooled = calibration.pooled[group.layers[0]].double()
    if group.layers[0] in inputs:
        pooled = pooled[:, list(inputs[group.layers[0]])]
    importance = sum(_importance(model, member, kept, calibration) for member in group.readers)
    assert isinstance(importance, Tensor)
    weight, bias = _ridge(pooled, importance)
    places = {member.owner: _places(model, member, kept, inputs) for member in group.readers}
    site = GateSite(
        group=group.name,
        writer=group.layers[0],
        inputs=pooled.size(1),
        units=len(kept),
        executed=executed,
        places=places,
    )
    return FittedGate(site, weight.float(), bias.float())


def _importance(model: nn.Module, reader: Member, kept: Tensor, calibration: Calibration) -> Tensor:
    """Return what each surviving unit sends to one reader: [images, units], float64."""
    strength = calibration.magnitudes[reader.owner].double() * _input_norms(model.get_submodule(reader.owner))
    return strength[:, torch.tensor(reader.channels)[kept]].sum(2)


def _input_norms(layer: Any) -> Tensor:
    """Return the norm of a reader's weights on each of its input channels: [cin], float64."""
    weight = layer.weight.detach().double()
    if isinstance(layer, TRANSPOSED):
        return weight.flatten(1).norm(dim=1)
    by_group = weight.unflatten(
        0, (getattr(layer, "groups", 1), -1)
    )  # [groups, cout / groups, cin / groups, ...]
    return by_group.unsqueeze(-1).flatten(3).square().sum((1, 3)).sqrt().flatten()


def _places(model: nn.Module, reader: Member, kept: Tensor, inputs: KeptInputs) -> tuple[int, ...]:
    layer: Any = model.get_submodule(reader.owner)
    size = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    unit_of = {channel: rank for rank, unit in enumerate(kept.tolist()) for channel in reader.channels[unit]}
    return tuple(unit_of.get(channel, -1) for channel in inputs.get(reader.owner, range(size)))


def _ridge(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight [targets, inputs] and bias [targets] of a linear fit with a penalty on the weight."""
    x, y = inputs - inputs.mean(0), targets - targets.mean(0)
    gram = x.T @ x
    penalty = RIDGE * gram.diagonal().mean() + 1e-12
    damped = gram + penalty * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weight = torch.linalg.solve(damped, x.T @ y).T
    return weight, targets.mean(0) - weight @ inputs.mean(0)
