"""Gates that choose, for each input, which of a group's units run; executed as masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunegym.pruning.surgery.cutting import TRANSPOSED, axis_size

GATES = "runtime_gates"  # the submodule that holds a network's gates
SHARPNESS = 2.0  # of the straight-through sigmoid, per standard deviation of an image's scores
MIN_SCORE_STD = 1e-2  # lower bound on the standard deviation of an image's scores; fitted ones have about 1

Places = Mapping[str, tuple[int, ...]]  # layer -> gated unit at each position of an axis, -1: none
# units that run for each image, int64 [batch], from pooled inputs [batch, inputs] and scores [batch, units]
CountOf = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class GateSite:
    """The place of a gate in a network: enough to attach it again.

    `outputs` are the writer and the carriers by their channels, `readers` the readers by their inputs.
    """

    group: str
    writer: str
    inputs: int  # channels that the writer reads
    units: int
    executed: int  # of those, per input
    outputs: Places
    readers: Places

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GateSite:
        """Build a site from what `to_dict` returned, also after a round trip through JSON.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: it is no such data.
        """
        roles = ("outputs", "readers")
        places = {role: {name: tuple(units) for name, units in data[role].items()} for role in roles}
        site = cls(**{**data, **places})
        all_places = [*site.outputs.values(), *site.readers.values()]
        numbers = [site.inputs, site.units, site.executed, *chain(*all_places)]
        if not all(type(number) is int for number in numbers) or not 1 <= site.executed <= site.units:
            raise ValueError(f"the gate of {site.group} cannot run {site.executed!r} of {site.units!r} units")
        for units in all_places:
            counts = Counter(unit for unit in units if unit != -1)
            known = len(counts) == site.units == max(counts) + 1 and min(counts) == 0
            if not known or len(set(counts.values())) != 1:
                raise ValueError(
                    f"the gate of {site.group} must have all its units in {units}, each as often"
                )
        return site

    def check_fit(self, model: nn.Module) -> None:
        """Refuse a network whose layers are not as the site says.

        Raises:
            AttributeError: it lacks a layer.
            ValueError: a layer is of another size, or the writer is not among the outputs.
        """
        sizes = {("in", self.writer): self.inputs}
        for axis, places in (("out", self.outputs), ("in", self.readers)):
            sizes |= {(axis, name): len(units) for name, units in places.items()}
        wrong = [name for (axis, name), size in sizes.items() if axis_size(model, name, axis) != size]
        if wrong or self.writer not in self.outputs:
            raise ValueError(f"the gate of {self.group} does not fit {', '.join(wrong) or self.writer}")


class RuntimeGate(nn.Module):
    """Gate that runs the units of highest score for this input (docs/decisions.md, D7); one thread at a time.

    The score is linear in the mean over positions of the writer's input. It selects and does not scale, so
    that a gate which executes all units is the exact identity. To readers a skipped channel is its `fill`.
    How many units run is `executed`, for all images alike, unless `count_of` says it for each.
    """

    def __init__(self, site: GateSite) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(site.units, site.inputs))
        self.bias = nn.Parameter(torch.zeros(site.units))
        gated = {name: sum(unit >= 0 for unit in places) for name, places in site.readers.items()}
        self.fill = nn.ParameterDict({as_key(name): torch.zeros(count) for name, count in gated.items()})
        self.executed = site.executed
        self.count_of: CountOf | None = None
        self.pooled: Tensor | None = None  # [batch, inputs], of the images in flight
        self.mask: Tensor | None = None  # [batch, units], likewise

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "pooled": None, "mask": None}  # in training they belong to a graph

    def choose(self, pooled: Tensor) -> None:
        """Decide for a batch of images, [batch, inputs]: sets `pooled` and `mask`."""
        self.pooled = pooled
        self.mask = self(pooled)

    def scores(self, pooled: Tensor) -> Tensor:
        """Return a score for each unit, larger for those to run: [batch, inputs] -> [batch, units]."""
        return nn.functional.linear(pooled, self.weight, self.bias)

    @property
    def may_skip(self) -> bool:
        """True if there can be an image for which not all units run."""
        return self.count_of is not None or self.executed < len(self.bias)

    def counts(self, pooled: Tensor, scores: Tensor) -> Tensor:
        """Return the units that run for each image: [batch], from [batch, inputs] and [batch, units]."""
        if self.count_of is not None:
            return self.count_of(pooled, scores.detach())
        # not its len, here and below: a program exported from this would hold that number
        return torch.full((pooled.size(0),), self.executed, device=pooled.device)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return the mask of executed units: [batch, inputs] -> [batch, units], of ones and zeros.

        Its gradient is that of a sigmoid around the score where execution ends (straight-through).
        """
        scores = self.scores(pooled)
        counts = self.counts(pooled, scores)[:, None]
        maximum = self.executed  # units that run for any image, or more
        if self.count_of is not None:
            # in an exported program, shapes cannot depend on values
            maximum = len(self.bias) if torch.compiler.is_exporting() else int(counts.max())
        # not a sort: among equal scores, slices must find the same ones
        chosen = scores.topk(maximum, dim=1).indices
        runs = torch.arange(chosen.size(1), device=scores.device) < counts
        mask = torch.zeros_like(scores).scatter(1, chosen, runs.to(scores.dtype))
        if not scores.requires_grad or not self.may_skip:
            return mask
        falling = scores.sort(dim=1, descending=True).values
        last, next_ = (falling.gather(1, at) for at in (counts - 1, counts.clamp_max(scores.size(1) - 1)))
        scale = scores.detach().std(dim=1, keepdim=True).clamp_min(MIN_SCORE_STD)
        soft = torch.sigmoid(SHARPNESS * (scores - (last + next_) / 2) / scale)
        return mask + torch.where(counts < scores.size(1), soft - soft.detach(), 0.0)


class RuntimeGates(nn.ModuleDict):
    """All gates of a network; passes its input on, since an nn.Sequential runs its last submodule too."""

    def __init__(self, sites: tuple[GateSite, ...]) -> None:
        super().__init__({as_key(site.group): RuntimeGate(site) for site in sites})
        self.sites = sites
        self.handles: list[RemovableHandle] = []

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`."""
        return x

    def forget(self) -> None:
        """Release the images in flight; after training, their graph would live as long as the gates."""
        for site in self.sites:
            gate = self.gate_for(site.group)
            gate.pooled = gate.mask = None

    def gate_for(self, group: str) -> RuntimeGate:
        """Return the gate of a group."""
        gate = self[as_key(group)]
        assert isinstance(gate, RuntimeGate)
        return gate

    def by_reader(self) -> dict[str, list[GatedInput]]:
        """Return, for each reader, its inputs that gates choose among."""
        inputs: dict[str, list[GatedInput]] = {}
        for site in self.sites:
            for name, places in site.readers.items():
                inputs.setdefault(name, []).append(GatedInput(self.gate_for(site.group), name, places))
        return inputs


def as_key(name: str) -> str:
    """Return a name that holds no dot, as a submodule's must, and is no attribute of a module."""
    return "/" + name.replace(".", "/")


class GatedInput:
    """The input channels of one reader that one gate chooses among."""

    def __init__(self, gate: RuntimeGate, reader: str, places: Sequence[int]) -> None:
        units = torch.tensor(places)
        self.gate = gate
        self.reader = reader
        self.size = len(units)
        self.positions = (units >= 0).nonzero()[:, 0]  # the gated channels, ascending
        self.units = units[self.positions]  # and their units

    @property
    def fill(self) -> Tensor:
        """The value that skipped channels count as: [gated channels]."""
        return self.gate.fill[as_key(self.reader)]

    def mask(self) -> Tensor:
        """Return ones for channels that run and zeros for skipped ones: [batch, cin]."""
        assert self.gate.mask is not None  # the writer runs before its readers
        ones = self.gate.mask.new_ones(self.gate.mask.size(0), self.size)
        return ones.index_copy(1, self.positions.to(ones.device), self.gate.mask[:, self.units])

    def fill_by_channel(self) -> Tensor:
        """Return the fill of gated channels, and zeros for all others: [cin]."""
        zeros = self.fill.new_zeros(self.size)
        return zeros.index_copy(0, self.positions.to(zeros.device), self.fill)


def attach_gates_(model: nn.Module, gates: RuntimeGates) -> None:
    """Add gates to a network, in place, as its submodule `runtime_gates`; without sites nothing is added."""
    if not gates.sites:
        return
    readers = gates.by_reader()
    for name, gated in readers.items():
        reader = model.get_submodule(name)
        gates.handles.append(reader.register_forward_pre_hook(_Silencer(gated)))
        if not isinstance(reader, TRANSPOSED):
            gates.handles.append(reader.register_forward_hook(_Filler(gated)))
    for site in gates.sites:  # after the silencers: gates do not see skipped channels
        chooser = _Chooser(gates.gate_for(site.group), readers.get(site.writer, ()))
        gates.handles.append(model.get_submodule(site.writer).register_forward_pre_hook(chooser))
    reference = next(model.parameters())
    model.add_module(GATES, gates.to(reference.device, reference.dtype))


def gates_of(model: nn.Module) -> RuntimeGates | None:
    """Return a network's gates, None where it has none."""
    gates = getattr(model, GATES, None)
    return gates if isinstance(gates, RuntimeGates) else None


def gate_sites(model: nn.Module) -> tuple[GateSite, ...]:
    """Return the sites of a network's gates."""
    gates = gates_of(model)
    return gates.sites if gates is not None else ()


def detach_gates_(model: nn.Module) -> None:
    """Remove a network's gates, in place."""
    gates = gates_of(model)
    if gates is not None:
        for handle in gates.handles:
            handle.remove()
        delattr(model, GATES)


@dataclass
class _Chooser:
    """Hook before a writer: decides from the writer's input, skipped channels counting as their fill."""

    gate: RuntimeGate
    gated: Sequence[GatedInput]  # of the writer, as a reader

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.gate.choose(with_fills(pooled_input(module, args[0]), self.gated))


def with_fills(pooled: Tensor, gated: Iterable[GatedInput]) -> Tensor:
    """Return pooled inputs, [batch, cin], with the fill in the place of each skipped channel."""
    for gated_input in gated:
        mask = gated_input.mask()
        pooled = pooled * mask + (1 - mask) * gated_input.fill_by_channel()
    return pooled


@dataclass
class _Silencer:
    """Hook before a reader: sets the channels of skipped units to zero."""

    gated: list[GatedInput]

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *others = args
        for gated_input in self.gated:
            x = x * _per_channel(module, x, gated_input.mask())
        return (x, *others)


@dataclass
class _Filler:
    """Hook after a reader: adds its response to skipped channels, each being its fill everywhere.

    Everywhere means beyond the border as well: one shift for each image and output channel.
    """

    gated: list[GatedInput]

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        for gated_input in self.gated:
            if gated_input.gate.may_skip:
                shift = constant_response(module, (1 - gated_input.mask()) * gated_input.fill_by_channel())
                output = output + _per_channel(module, output, shift)
        return output


def constant_response(reader: Any, values: Tensor) -> Tensor:
    """Return a reader's output, without bias, for channels that are constant everywhere.

    Args:
        reader: a linear layer or a convolution that is not transposed.
        values: the values of its input channels, [batch, cin].

    Returns:
        [batch, cout].
    """
    if isinstance(reader, nn.Linear):
        return nn.functional.linear(values, reader.weight)
    sums = reader.weight.flatten(2).sum(2).unflatten(0, (reader.groups, -1))  # [groups, cout/g, cin/g]
    return torch.einsum("goc,bgc->bgo", sums, values.unflatten(1, (reader.groups, -1))).flatten(1)


def pooled_input(module: nn.Module, x: Tensor) -> Tensor:
    """Return the mean over positions of a layer's input: [batch, channels]."""
    if x.dim() == 2:
        return x
    return x.flatten(1, -2).mean(1) if isinstance(module, nn.Linear) else x.flatten(2).mean(2)


def _per_channel(module: nn.Module, x: Tensor, values: Tensor) -> Tensor:
    """Return values [batch, channels] in a shape that broadcasts over a layer's input or output."""
    linear = isinstance(module, nn.Linear)
    return values.reshape(
        (x.size(0), *[1] * (x.dim() - 2), -1) if linear else (x.size(0), -1, *[1] * (x.dim() - 2))
    )
