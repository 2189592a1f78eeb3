"""Follow a network's forward with torch.fx, past what torch.fx alone would stop at."""

from __future__ import annotations

import ast
import copy
import operator
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from prunegym.pruning.errors import UntraceableModelError, one_line
from prunegym.pruning.graph.operators import UNTRACED, OpaqueParts, stopping_line
from prunegym.pruning.machine_failures import raise_machine_failure

BATCH = 2  # more than one, so that no rule can take the batch for a channel dimension
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
LAYERS = (*CONVOLUTIONS, nn.Linear)
_VARIED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, *BATCH_NORMS)
# functions and methods that read no entries of a tensor
_SIZES = (
    *(getattr, len, torch.numel, torch.is_tensor, torch.is_floating_point, torch.is_complex),
    *("size", "dim", "ndimension", "numel", "nelement", "stride", "element_size"),
    *("is_floating_point", "is_complex", "is_contiguous", "get_device"),
)
_TENSORS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


def trace_program(model: nn.Module, input_shape: Sequence[int]) -> fx.GraphModule:
    """Return the traced copy of a model, in evaluation mode.

    Args:
        model: any module whose `forward` takes one batch of images; it is not changed.
        input_shape: shape of one image.

    Raises:
        UntraceableModelError: torch.fx cannot follow its `forward`, or write the name of a module as code.
    """
    for name in (*dict(model.named_modules()), *dict(model.named_parameters()), *dict(model.named_buffers())):
        if not _fits_into_code(name):
            raise UntraceableModelError(
                f"torch.fx cannot trace {type(model).__name__}: {name!r} is no name for a part of a network; "
                "leave out quotation marks, backslashes and line breaks"
            )
    model = copy.deepcopy(model).eval()
    example = example_image(model, input_shape)
    parts = OpaqueParts(model)
    held = ModuleState(model)
    try:
        while True:
            try:
                graph = ModuleTracer(example).trace(model)
                break
            except Exception as error:  # user code may raise anything on a symbolic input
                raise_machine_failure(error)
                held.put_back_()
                if not parts.take(error):
                    raise _untraceable(model, error) from error
    finally:
        parts.undo()
    held.put_back_()
    return fx.GraphModule(model, graph)


def _untraceable(model: nn.Module, error: Exception) -> UntraceableModelError:
    name, reason, line = type(model).__name__, _reason(error), stopping_line(error)
    if isinstance(error, TypeError) and "required positional argument" in str(error):
        return UntraceableModelError(
            f"{name} takes more than a batch of images ({reason}); wrap it in a module whose "
            "forward(self, x) calls it with all that it needs"
        )
    return UntraceableModelError(
        f"{name} cannot be followed: {reason}" + (f" in {line}" if line else "") + "; move that into a "
        "submodule, which is then left as it is while the rest is pruned"
    )


def _reason(error: Exception) -> str:
    """Return why a forward could not be followed, without the names of what stands for tensors meanwhile."""
    if isinstance(error, fx.proxy.TraceError) and "control flow" in str(error):
        return "it branches on what a tensor holds"
    if isinstance(error, fx.proxy.TraceError) and "iterated" in str(error):
        return "it loops over what is no sequence"
    text = re.sub(r"'?_SizedProxy'? object|Proxy\(\w+\)", "a tensor", one_line(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class ModuleState:
    """What the modules of a model hold, lists and dictionaries included, so that it can be put back.

    A `forward` may keep what it computes, as detection heads keep their grids. While torch.fx follows it,
    these are stand-ins for tensors, which must not stay behind.
    """

    def __init__(self, model: nn.Module) -> None:
        self._contents: dict[int, tuple[Any, Any]] = {}  # containers and what they held, by identity
        for module in model.modules():
            self._hold(module.__dict__)

    def _hold(self, value: Any) -> None:
        if type(value) in (dict, OrderedDict, list, set) and id(value) not in self._contents:
            self._contents[id(value)] = value, copy.copy(value)
            for entry in value.values() if isinstance(value, dict) else value:
                self._hold(entry)

    def put_back_(self) -> None:
        """Undo what was assigned to the modules since."""
        for container, content in self._contents.values():
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)


class Constant:
    """A function without arguments that returns a tensor which a `forward` made by itself.

    torch.fx would keep the tensor as an attribute of the traced copy, and other copies of the network would
    lack it. A function that the program calls is part of the program, and goes wherever that goes.
    """

    __module__, __name__, __qualname__ = __name__, "constant", "constant"

    def __init__(self, value: Tensor) -> None:
        self._value = value

    def __call__(self) -> Tensor:
        """Return a copy, as a program may write into it."""
        return self._value.clone()


def _fits_into_code(name: str) -> bool:
    """Return whether a name stands for itself between quotation marks, where torch.fx puts it."""
    try:
        return ast.literal_eval(f'"{name}"') == name
    except (SyntaxError, ValueError):
        return False


def is_layer_variant(module: nn.Module) -> bool:
    """Return whether a module is a convolution, linear layer or BatchNorm, or a variant without more weights.

    Such as one that pads its input by itself, or has its activation built in. It is not followed into, since
    layers are known by their weights; the trial cuts of `trace` find out if its forward does more.
    """
    tensors = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    return isinstance(module, _VARIED) and tensors <= _TENSORS


def example_image(model: nn.Module, input_shape: Sequence[int]) -> Tensor:
    """Return a batch of noise, [BATCH, *input_shape], of the device and type of the model's parameters."""
    reference = next(iter(model.parameters()), torch.empty(0))
    example = torch.randn((BATCH, *input_shape), generator=torch.Generator().manual_seed(0))
    return example.to(reference.device, reference.dtype)


class ModuleTracer(fx.Tracer):
    """An fx tracer that knows sizes, and takes a module that it cannot follow as one operator.

    A `forward` may branch and loop on sizes: they are those of the example, to which the program is then
    tied. What else stops torch.fx stops it only inside the innermost module around it.
    """

    proxy_buffer_attributes = True  # or what is computed from buffers alone would stay where they are now

    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self._example = example
        self._known: dict[fx.Node, Any] = {}
        self._attributes: dict[str, fx.Proxy] = {}
        # fx sends every module's call and attribute through here, also those of values
        self._computing = False

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Return the forward as a function of the images alone: other arguments have their defaults."""

        def forward(model: nn.Module, images: Any) -> Any:
            return root_fn(model, images)

        return super().create_args_for_root(forward, is_module, concrete_args)

    def create_arg(self, a: Any) -> Any:
        """Return a value as an argument of a node; a tensor that no module holds becomes a constant."""
        if isinstance(a, Tensor) and not self._is_attribute(a):
            return self.create_node("call_function", Constant(a), (), {})
        return super().create_arg(a)

    def _is_attribute(self, value: Tensor) -> bool:
        own = (*self.root.named_parameters(), *self.root.named_buffers())
        return value in self.tensor_attrs or any(value is tensor for _, tensor in own)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is one operator of the program."""
        return is_layer_variant(m) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Follow a module's forward or, if that fails, take it as one operator."""
        if self._computing:
            return forward(*args, **kwargs)
        last, stack, held = next(reversed(self.graph.nodes), None), self.module_stack.copy(), ModuleState(m)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:  # user code may raise anything on a symbolic input
            raise_machine_failure(error)
            self.module_stack = stack
            held.put_back_()
            self._forget(takewhile(lambda node: node is not last, reversed(self.graph.nodes)))
            proxy = self.create_proxy("call_module", self.path_of_module(m), args, kwargs)
            proxy.node.meta[UNTRACED] = f"{type(m).__name__} is not followed: {_reason(error)}"
            return proxy

    def _forget(self, nodes: Iterable[fx.Node]) -> None:
        """Erase the nodes of a failed attempt, the last one first."""
        for node in nodes:
            self.graph.erase_node(node)
            self._known.pop(node, None)
        present = set(self.graph.nodes)
        for name in [name for name, proxy in self._attributes.items() if proxy.node not in present]:
            del self._attributes[name]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return the proxy of a module's attribute; while sizes are computed, its value."""
        self._attributes = parameter_proxy_cache
        return attr_val if self._computing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return the proxy of a node's value while a forward is followed."""
        return _SizedProxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Return the truth value of a size; a branch on the values of tensors is refused."""
        size = self.size(obj)
        return super().to_bool(obj) if size is None else bool(size)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Return the elements of a sequence or a tensor; their number is known."""
        value = self._value(obj.node)
        if not isinstance(value, (tuple, list, Tensor)):
            return super().iter(obj)
        return (obj[place] for place in range(len(value)))  # type: ignore[index]

    def length(self, obj: fx.Proxy) -> int:
        """Return the number of elements of a sequence or a tensor."""
        return len(self._value(obj.node))

    def size(self, obj: fx.Proxy) -> Any:
        """Return the value of a proxy if it is the same for all images of the example's size, else None."""
        return None if self._reads_images(obj.node) else self._value(obj.node)

    def _reads_images(self, wanted: fx.Node) -> bool:
        """Return whether a value depends on what the images show, and not on their size alone."""
        seen, left = set(), [wanted]
        while left:
            node = left.pop()
            if node.op == "placeholder":
                return True
            if not _reads_size(node, self._value(node)):
                left += [read for read in node.all_input_nodes if read not in seen]
            seen.add(node)
        return False

    @torch.no_grad()
    def _value(self, wanted: fx.Node) -> Any:
        self._computing = True
        try:
            for node in self.graph.nodes:  # in the order of execution; most networks never ask
                if node in self._known:
                    continue
                if node.op == "placeholder":
                    self._known[node] = argument_value(node, self._example)
                else:
                    args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._known.__getitem__)
                    self._known[node] = run_node(self.root, node, args, kwargs)
        finally:
            self._computing = False
        return self._known[wanted]


def _reads_size(node: fx.Node, value: Any) -> bool:
    """Return whether a node gives a tensor's size, type or device, which are the same for all images."""
    holds_tensors = any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))
    return not holds_tensors and node.op != "call_module" and node.target in _SIZES


class _SizedProxy(fx.Proxy):
    """A proxy whose sizes can be counted and looped over."""

    tracer: ModuleTracer

    def __getattr__(self, name: str) -> Any:
        if name in ("shape", "ndim"):  # not yet the value of a call: fx takes any other for a method
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return super().__getattr__(name)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __len__(self) -> int:
        return self.tracer.length(self)

    def __index__(self) -> int:
        return operator.index(self._size())

    def __int__(self) -> int:
        return int(self._size())

    def __float__(self) -> float:
        return float(self._size())

    def _size(self) -> Any:
        size = self.tracer.size(self)
        if size is None:
            raise ValueError("what a tensor holds is used as a size")
        return size


def argument_value(placeholder: fx.Node, images: Tensor) -> Any:
    """Return an argument of a network that is called with images alone: these, or a further one's default.

    A copy of the images, since a network may change its input in place.
    """
    first = next(iter(placeholder.graph.nodes))
    return placeholder.args[0] if placeholder is not first and placeholder.args else images.clone()


def run_node(model: nn.Module, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute a node of a program, other than its input and its output, with a model's weights."""
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        return getattr(model.get_submodule(owner), name)
    if node.op == "call_module":
        return model.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)
