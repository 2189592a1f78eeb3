"""Follow a network's forward with torch.fx, past what torch.fx alone would stop at."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from prunegym.pruning.errors import UntraceableModelError, one_line, raise_machine_failure

BATCH = 2  # more than one, so that no rule can take the batch for a channel dimension
UNTRACED = "untraced"  # the key of a node's `meta` that says why a module was not followed
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_VARIED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, *BATCH_NORMS)
_TENSORS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


def trace_program(model: nn.Module, input_shape: Sequence[int]) -> fx.GraphModule:
    """Return the traced copy of a model, in evaluation mode.

    Args:
        model: any module whose `forward` takes one batch of images; it is not changed.
        input_shape: shape of one image.

    Raises:
        UntraceableModelError: torch.fx cannot follow its `forward`.
    """
    model = copy.deepcopy(model).eval()
    try:
        graph = ModuleTracer(example_image(model, input_shape)).trace(model)
    except Exception as error:  # user code may raise anything on a symbolic input
        raise_machine_failure(error)
        raise UntraceableModelError(
            f"torch.fx cannot trace {type(model).__name__}: {one_line(error)}; "
            "its forward must not branch or loop on the values of tensors"
        ) from error
    return fx.GraphModule(model, graph)


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

    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self._example = example
        self._known: dict[fx.Node, Any] = {}
        # fx sends every module's call and attribute through here, also those of values
        self._computing = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is one operator of the program."""
        return is_layer_variant(m) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Follow a module's forward or, if that fails, take it as one operator."""
        if self._computing:
            return forward(*args, **kwargs)
        last, stack = next(reversed(self.graph.nodes), None), self.module_stack.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:  # user code may raise anything on a symbolic input
            raise_machine_failure(error)
            self.module_stack = stack
            for node in reversed(self.graph.nodes):  # those of the failed attempt
                if node is last:
                    break
                self.graph.erase_node(node)
            proxy = self.create_proxy("call_module", self.path_of_module(m), args, kwargs)
            proxy.node.meta[UNTRACED] = f"torch.fx cannot trace {type(m).__name__}: {one_line(error)}"
            return proxy

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return the proxy of a module's attribute; while sizes are computed, its value."""
        return attr_val if self._computing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return the proxy of a node's value while a forward is followed."""
        return _SizedProxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Return the truth value of a size; a branch on the values of tensors is refused."""
        size = self.size(obj)
        return super().to_bool(obj) if size is None else bool(size)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Return the elements of a sequence whose length is known."""
        value = self._value(obj.node)
        if not isinstance(value, (tuple, list)):
            return super().iter(obj)
        return (obj[place] for place in range(len(value)))  # type: ignore[index]

    def size(self, obj: fx.Proxy) -> Any:
        """Return the value of a proxy for the example if no tensor is in it, else None."""
        value = self._value(obj.node)
        return None if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value)) else value

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


class _SizedProxy(fx.Proxy):
    """A proxy whose sizes can be counted and looped over."""

    tracer: ModuleTracer

    def __getattr__(self, name: str) -> Any:
        if name in ("shape", "ndim"):  # not yet the value of a call: fx takes any other for a method
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return super().__getattr__(name)

    def __len__(self) -> int:
        return len(self._size())

    def __index__(self) -> int:
        return operator.index(self._size())

    def __int__(self) -> int:
        return int(self._size())

    def __float__(self) -> float:
        return float(self._size())

    def _size(self) -> Any:
        size = self.tracer.size(self)
        if size is None:
            raise fx.proxy.TraceError("a tensor's values are used as a size")
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
