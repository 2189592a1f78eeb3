"""Run a traced network once, with an index tensor beside every activation."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from prunegym.pruning.errors import UntraceableModelError, one_line
from prunegym.pruning.graph.channels import CONSTANT, Channels, profile, spread, varying
from prunegym.pruning.graph.operators import UNTRACED
from prunegym.pruning.graph.records import LayerShape, ShapeConstant
from prunegym.pruning.graph.tracing import BATCH, Constant, example_image
from prunegym.pruning.machine_failures import raise_machine_failure


@dataclass
class Slot:
    """One tensor axis that holds channels: `ids` gives each position's channel number."""

    role: str  # writers, carriers, readers, parameters or constants, as in ChannelGroup
    owner: str
    ids: Tensor
    axis: int = 0


@dataclass
class Call:
    """One operator with its inputs, its result, and the index tensors of its inputs."""

    node: fx.Node
    module: nn.Module | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    index_args: tuple[Any, ...]  # as args, with index tensors in the place of tensors
    index_kwargs: dict[str, Any]
    value: Any

    @property
    def name(self) -> str:
        """The operator's name in a reason: that of the layer or of the function."""
        target = self.node.target
        return target if isinstance(target, str) else getattr(target, "__name__", str(target))

    def argument(self, position: int, keyword: str, default: Any = None) -> Any:
        """Return an argument of the call, however it was passed."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(keyword, default)

    def indices(self) -> list[Tensor]:
        """Return the index tensors of all tensor arguments."""
        return [
            leaf
            for leaf in pytree.tree_leaves((self.index_args, self.index_kwargs))
            if isinstance(leaf, Tensor)
        ]


Rule = Callable[["ChannelPropagation", Call], Any]  # returns the index tensor(s) of the result


@dataclass
class ChannelPropagation:
    """The channel numbers, axes, layers and constants found on the way through a network."""

    channels: Channels = field(default_factory=Channels)
    slots: dict[tuple[str, str], Slot] = field(default_factory=dict)
    layers: dict[str, LayerShape] = field(default_factory=dict)
    constants: dict[str, ShapeConstant] = field(default_factory=dict)
    counted_macs: int = 0  # by torch's own counter, of one image

    def add_slot(self, role: str, owner: str, ids: Tensor, axis: int = 0) -> Tensor:
        """Record which channels an axis holds; another call of a layer couples the channels of both."""
        slot = self.slots.setdefault((role, owner), Slot(role, owner, ids, axis))
        if slot.ids is not ids:
            self.channels.tie(slot.ids, ids)
            if bool(((slot.ids >= 0) != (ids >= 0)).any()):
                self.channels.freeze(torch.cat([slot.ids, ids]), f"{owner} is called on unlike inputs")
        return slot.ids

    def add_constant(self, node: fx.Node, path: tuple[str | int, ...], ids: Tensor) -> None:
        """Record a size written into `forward` that counts the channels `ids`."""
        key = ":".join([node.name, *map(str, path)])
        self.constants[key] = ShapeConstant(key=key, node=node.name, path=path, size=len(ids))
        self.add_slot("constants", key, ids)

    def add_layer(self, shape: LayerShape) -> None:
        """Record a layer; if it is called again, the work adds up."""
        earlier = self.layers.get(shape.name)
        if earlier is not None:  # no BatchNorm may absorb a shift for both calls
            positions = earlier.positions + shape.positions
            shape = replace(shape, positions=positions, calls=earlier.calls + 1, batch_norm=None)
        self.layers[shape.name] = shape

    def parameter(self, name: str, value: Tensor) -> Tensor:
        """Return the index tensor of a bare tensor: one with a single axis may hold a value per channel."""
        axes = [axis for axis, size in enumerate(value.shape) if size > 1]
        if len(axes) != 1:
            return torch.tensor(CONSTANT).expand(value.shape)
        known = self.slots.get(("parameters", name))
        ids = known.ids if known else self.channels.create(value.size(axes[0]))
        return spread(self.add_slot("parameters", name, ids, axes[0]), value.shape, axes[0])

    def freeze(self, call: Call, reason: str) -> Any:
        """Freeze every channel that enters the call; return opaque index tensors for its result."""
        for index in call.indices():
            self.channels.freeze(index, reason)
        return self.opaque_like(call.value, reason)

    def opaque_like(self, value: Any, reason: str) -> Any:
        """Return index tensors for a result whose channels are not understood."""
        return _map_tensors(lambda tensor: self.channels.opaque(tensor.shape, reason), value)

    def along(self, index: Tensor, dim: int, call: Call) -> Tensor | None:
        """Return the channel numbers along `dim`, or None (after freezing) if they lie elsewhere too."""
        index = self.channels.separate(index)
        dim %= index.dim()
        if set(varying(index)) - {dim}:
            self.channels.freeze(index, f"{call.name} reads its channels across another dimension")
            return None
        return profile(index, dim)


class ChannelInterpreter(fx.Interpreter):
    """Interpret a traced network on an example; shadow each value by its index tensor."""

    def __init__(self, traced: fx.GraphModule, rules: Callable[[Call], Rule | None]) -> None:
        super().__init__(traced)
        self.propagation = ChannelPropagation()
        self._rules = rules
        self._index: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Compute the node's value, then its index tensors."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        index_args, index_kwargs = self._index_of(n, n.args), self._index_of(n, n.kwargs)
        value = super().run_node(n)
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        call = Call(n, module, args, kwargs, index_args, index_kwargs, value)
        index = self._shadow(call)
        self._index[n.name] = _map_tensors(self.propagation.channels.settle, index)
        return value

    def _index_of(self, node: fx.Node, arguments: Any) -> Any:
        return fx.node.map_arg(arguments, lambda argument: self._index[argument.name])

    def _shadow(self, call: Call) -> Any:
        if call.node.op == "output":
            for index in call.indices():
                self.propagation.channels.freeze(index, "it is the network's output")
            return None
        rule = self._rules(call)
        untraced = call.node.meta.get(UNTRACED)
        if rule is None and untraced:
            return self.propagation.freeze(call, untraced)
        computes = any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(call.value))
        if not computes and call.node.target is not operator.setitem:
            return call.value  # sizes and numbers: known, and no channels in them
        if call.node.op == "placeholder":
            return self.propagation.opaque_like(call.value, "it is the network's input")
        if call.node.op == "get_attr":
            return self.propagation.parameter(str(call.node.target), call.value)
        if isinstance(call.node.target, Constant):
            return torch.tensor(CONSTANT).expand(call.value.shape)
        if rule is None:
            kind = call.name if call.module is None else type(call.module).__name__
            return self.propagation.freeze(call, f"no rule for {kind}")
        if not call.args:
            return self.propagation.freeze(call, f"{call.name} takes its input by keyword")
        try:
            return rule(self.propagation, call)
        except Exception as error:  # a fault of ours must not pass for one of the network's
            raise_machine_failure(error)
            return self.propagation.freeze(call, f"the rule for {call.name} failed: {one_line(error)}")


def _map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    return pytree.tree_map_only(Tensor, function, value)


@torch.no_grad()
def propagate(
    traced: fx.GraphModule, input_shape: Sequence[int], rules: Callable[[Call], Rule | None]
) -> ChannelPropagation:
    """Run the network on noise of `input_shape` (one image) and return what the rules found.

    Raises:
        UntraceableModelError: the network does not run on such an input.
    """
    example = example_image(traced, input_shape)
    interpreter = ChannelInterpreter(traced, rules)
    counter = FlopCounterMode(display=False)
    try:
        with counter:  # in a run of its own: every operation on an index tensor would pass through it too
            fx.Interpreter(traced).run(example.clone())
    except Exception as error:  # user code may raise anything
        raise_machine_failure(error)
        cause = one_line(error).partition("While executing %")[0].strip()  # fx adds its graph
        raise UntraceableModelError(
            f"the network does not run on an image of shape {tuple(input_shape)}: {cause}"
        ) from error
    interpreter.run(example)
    # those that torch spent on convolutions and on matrices of weights
    flops = counter.get_flop_counts().get("Global", {})
    counted = (torch.ops.aten.convolution, torch.ops.aten.mm, torch.ops.aten.addmm)
    total = sum(flops.get(operator, 0) for operator in counted)
    interpreter.propagation.counted_macs = total // (2 * BATCH)  # a MAC is 2 FLOPs
    return interpreter.propagation
