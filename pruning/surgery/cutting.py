"""Cut channels: the only module that changes the shape of a weight or a shape constant."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor, fx, nn

from prunegym.pruning.errors import PruningError
from prunegym.pruning.graph import ChannelGraph
from prunegym.pruning.graph.tracing import CONVOLUTIONS, TRANSPOSED
from prunegym.pruning.machine_failures import raise_machine_failure
from prunegym.pruning.modes import evaluating

KeptUnits = Mapping[str, Tensor]  # group -> numbers of the kept units, ascending; unnamed: all are kept
Form = Literal["module", "graph"]
_SIZES = {nn.PReLU: "num_parameters", nn.GroupNorm: "num_channels"}  # attributes; of others num_features
Axis = Literal["out", "in", "parameter"]


@dataclass(frozen=True, slots=True)
class AxisCut:
    """The kept positions along one axis: a layer's outputs, its inputs, or a bare parameter's `dim`.

    Raises:
        ValueError: there is no such axis, or the positions are not whole numbers that ascend.
    """

    owner: str
    axis: Axis
    kept: tuple[int, ...]
    dim: int = 0

    def __post_init__(self) -> None:
        whole = all(type(number) is int and number >= 0 for number in (self.dim, *self.kept))
        if self.axis not in get_args(Axis) or (self.dim and self.axis != "parameter") or not whole:
            raise ValueError(f"{self.owner}: no axis {self.axis!r} {self.dim!r} with positions {self.kept!r}")
        if not self.kept or any(low >= high for low, high in pairwise(self.kept)):
            raise ValueError(f"{self.owner}: positions must ascend, got {self.kept!r}")


@dataclass(frozen=True)
class Structure:
    """The difference in shape between a cut network and the dense one: enough to cut a fresh one alike.

    `form` is "module" where the user's own `forward` still runs on the smaller weights, and "graph" where
    the traced program with new `constants` has to take its place (see docs/decisions.md, D6).
    """

    cuts: tuple[AxisCut, ...] = ()
    constants: Mapping[str, int] = field(default_factory=dict)
    form: Form = "module"

    def __post_init__(self) -> None:
        sizes = self.constants.values()
        if self.form not in get_args(Form) or not all(type(size) is int and size >= 0 for size in sizes):
            raise ValueError(f"form {self.form!r} with constants {self.constants!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Structure:
        """Build a structure from what `to_dict` returned, also after a round trip through JSON.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: it is no such data.
        """
        cuts = tuple(AxisCut(**{**cut, "kept": tuple(cut["kept"])}) for cut in data["cuts"])
        return cls(**{**data, "cuts": cuts})


def axis_cuts(model: nn.Module, graph: ChannelGraph, kept: KeptUnits) -> tuple[AxisCut, ...]:
    """Return the kept positions along every axis that is cut; constants are not among them."""
    removed: dict[tuple[str, str, int], set[int]] = defaultdict(set)
    for group in graph.groups:
        units = _removed_units(group.units, kept.get(group.name))
        roles = {"out": (*group.writers, *group.carriers), "in": group.readers, "parameter": group.parameters}
        for axis, members in roles.items():
            for member in members:
                positions = (channel for unit in units for channel in member.channels[unit])
                removed[member.owner, axis, member.axis].update(positions)
    cuts = []
    for (owner, axis, dim), absent in removed.items():
        if absent:
            size = axis_size(model, owner, axis, dim)
            stay = tuple(position for position in range(size) if position not in absent)
            cuts.append(AxisCut(owner, axis, stay, dim))  # type: ignore[arg-type]
    return tuple(cuts)


def _removed_units(units: int, kept: Tensor | None) -> list[int]:
    return [] if kept is None else sorted(set(range(units)) - set(kept.tolist()))


def axis_size(model: nn.Module, owner: str, axis: str, dim: int = 0) -> int:
    """Return the length of the axis that an AxisCut with these fields would cut."""
    if axis == "parameter":
        return bare_tensor(model, owner).size(dim)
    module: Any = model.get_submodule(owner)
    if isinstance(module, CONVOLUTIONS):
        return module.out_channels if axis == "out" else module.in_channels
    if isinstance(module, nn.Linear):
        return module.out_features if axis == "out" else module.in_features
    return getattr(module, _SIZES.get(type(module), "num_features"))


def bare_tensor(model: nn.Module, name: str) -> Tensor:
    """Return a parameter or buffer by its qualified name."""
    owner, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(owner), attribute)


def kept_constants(graph: ChannelGraph, kept: KeptUnits) -> dict[str, int]:
    """Return the new value of every shape constant that changes."""
    values = {key: constant.size for key, constant in graph.constants.items()}
    for group in graph.groups:
        units = _removed_units(group.units, kept.get(group.name))
        for member in group.constants:
            values[member.owner] -= sum(len(member.channels[unit]) for unit in units)
    return {key: value for key, value in values.items() if value != graph.constants[key].size}


def cut_(model: nn.Module, graph: ChannelGraph, kept: KeptUnits) -> tuple[nn.Module, Structure]:
    """Cut a model down to its kept units, in place; return the model to use and its structure.

    The model returned is `model` itself, or a GraphModule around its layers where `forward` holds a shape
    constant that no longer fits. Names of submodules and state-dict keys stay.
    """
    cuts, constants = axis_cuts(model, graph, kept), kept_constants(graph, kept)
    _cut_layers_(model, cuts)
    if not constants:
        return model, Structure(cuts)
    program = _graph_form(model, graph, constants)
    if _own_forward_agrees(model, program, graph):
        return model, Structure(cuts, constants, "module")
    return program, Structure(cuts, constants, "graph")


def cut(model: nn.Module, graph: ChannelGraph, kept: KeptUnits) -> nn.Module:
    """Return a cut copy of a model; see `cut_`."""
    return cut_(copy.deepcopy(model), graph, kept)[0]


def rebuild_(model: nn.Module, graph: ChannelGraph | None, structure: Structure) -> nn.Module:
    """Cut a fresh model to a recorded structure, in place; return the model to use.

    `graph` is needed for the form "graph" only; the weights are those of the fresh model.

    Raises:
        PruningError: the structure does not fit the model.
    """
    try:
        _cut_layers_(model, structure.cuts)
        if structure.form == "module" or graph is None:
            return model
        return _graph_form(model, graph, structure.constants)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
        raise_machine_failure(error)
        raise PruningError(f"the recorded structure does not fit {type(model).__name__}: {error}") from error


def _cut_layers_(model: nn.Module, cuts: Iterable[AxisCut]) -> None:
    # outputs first: a grouped convolution cut to one input per group would pass for a depthwise one
    for cut in sorted(cuts, key=lambda cut: cut.axis == "in"):
        kept = torch.tensor(cut.kept, dtype=torch.long)
        if cut.axis == "parameter":
            owner, _, name = cut.owner.rpartition(".")
            _slice_(model.get_submodule(owner), name, cut.dim, kept)
        else:
            _cut_layer_(model.get_submodule(cut.owner), cut.axis, kept)


def _cut_layer_(module: Any, axis: str, kept: Tensor) -> None:
    if isinstance(module, CONVOLUTIONS):
        _cut_convolution_(module, axis, kept)
    elif isinstance(module, nn.Linear):
        _slice_(module, "weight", 0 if axis == "out" else 1, kept)
        setattr(module, "out_features" if axis == "out" else "in_features", len(kept))
    else:
        if isinstance(module, nn.GroupNorm):
            module.num_groups = module.num_groups * len(kept) // module.num_channels
        setattr(module, _SIZES.get(type(module), "num_features"), len(kept))
        for name in ("weight", "running_mean", "running_var"):
            _slice_(module, name, 0, kept)
    if axis == "out":
        _slice_(module, "bias", 0, kept)


def _cut_convolution_(module: Any, axis: str, kept: Tensor) -> None:
    transposed = isinstance(module, TRANSPOSED)
    depthwise = 1 < module.groups == module.in_channels and not transposed
    if axis == "out":
        if depthwise:  # each input channel is a convolution group of its own
            module.groups = module.in_channels = len(kept) * module.in_channels // module.out_channels
        by_group = kept[kept < module.out_channels // module.groups] if transposed else kept
        _slice_(module, "weight", 1 if transposed else 0, by_group)
        module.out_channels = len(kept)
    else:  # units hold one channel of each convolution group, so the first group shows the pattern
        by_group = kept if transposed else kept[kept < module.in_channels // module.groups]
        _slice_(module, "weight", 0 if transposed else 1, by_group)
        module.in_channels = len(kept)


def _slice_(module: nn.Module, name: str, dim: int, kept: Tensor) -> None:
    tensor = getattr(module, name, None)
    if tensor is None:
        return
    smaller = tensor.detach().index_select(dim, kept.to(tensor.device))
    if isinstance(tensor, nn.Parameter):
        smaller = nn.Parameter(smaller, requires_grad=tensor.requires_grad)
    setattr(module, name, smaller)


def _graph_form(model: nn.Module, graph: ChannelGraph, constants: Mapping[str, int]) -> fx.GraphModule:
    program = copy.deepcopy(graph.program)
    nodes = dict(zip((node.name for node in graph.program.nodes), program.nodes, strict=True))
    pieces: dict[str, dict[int, int]] = defaultdict(dict)
    for key, constant in graph.constants.items():
        value = constants.get(key, constant.size)
        if constant.path[0] == "split":
            pieces[constant.node][int(constant.path[1])] = value
        else:
            node, (holder, *path) = nodes[constant.node], constant.path
            setattr(node, str(holder), _replaced(getattr(node, str(holder)), path, value))
    for name, sizes in pieces.items():
        _split_by_sizes_(nodes[name], [sizes[piece] for piece in sorted(sizes)])
    module = fx.GraphModule(model, program, class_name=type(model).__name__)
    _adopt_(module, model)
    return module


def _adopt_(program: nn.Module, model: nn.Module) -> None:
    """Register in a program also the tensors that `forward` never touches: the state-dict keys stay."""
    for name, parameter in model._parameters.items():
        program.register_parameter(name, parameter)
    for name, buffer in model._buffers.items():
        program.register_buffer(name, buffer, persistent=name not in model._non_persistent_buffers_set)
    program._non_persistent_buffers_set.update(program._buffers.keys() - model._buffers.keys())
    for name, child in model._modules.items():
        if child is not None and program._modules.setdefault(name, child) is not child:
            _adopt_(program.get_submodule(name), child)


def _replaced(holder: Any, path: list[str | int], value: int) -> Any:
    """Return a copy of nested arguments with the entry at `path` replaced."""
    if not path:
        return value
    first, *rest = path
    if isinstance(holder, slice):
        places = {name: getattr(holder, name) for name in ("start", "stop", "step")}
        return slice(*{**places, str(first): value}.values())
    if isinstance(holder, Mapping):
        return {**holder, first: _replaced(holder[first], rest, value)}
    index = int(first)
    return type(holder)([*holder[:index], _replaced(holder[index], rest, value), *holder[index + 1 :]])


def _split_by_sizes_(node: fx.Node, sizes: list[int]) -> None:
    """Replace a `split` or `chunk` by a split into pieces of these sizes."""
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    with node.graph.inserting_before(node):
        explicit = node.graph.call_function(torch.split, (node.args[0], sizes, dim))
    node.replace_all_uses_with(explicit)
    node.graph.erase_node(node)


def attempt(model: nn.Module, example: Tensor) -> Any:
    """Run a network that may fail: a GraphModule's own call would print a traceback."""
    return nn.Module.__call__(model, example)


@torch.no_grad()
def _own_forward_agrees(model: nn.Module, program: fx.GraphModule, graph: ChannelGraph) -> bool:
    """Return whether the user's own forward runs on the cut layers and computes what the program does."""
    parameter = next(model.parameters())
    example = torch.randn((2, *graph.input_shape), generator=torch.Generator().manual_seed(1))
    example = example.to(parameter.device, parameter.dtype)
    try:
        with evaluating(model, program):
            return torch.equal(attempt(model, example), attempt(program, example))
    except Exception as error:  # a constant in user code no longer fits, and it may raise anything
        raise_machine_failure(error)
        return False
