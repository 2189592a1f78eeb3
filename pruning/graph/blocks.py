"""Residual blocks that can be left out: submodules that add a branch to their input."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from prunegym.pruning.graph.records import ChannelGraph, ChannelGroup, Member
from prunegym.pruning.graph.tracing import example_image
from prunegym.pruning.machine_failures import raise_machine_failure
from prunegym.pruning.modes import evaluating

STACK = "nn_module_stack"  # the entry of a node's `meta` that says in which modules it was traced
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)  # modules that pass their input on in evaluation mode
ACTIVATION_MODULES = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardswish, nn.SiLU, nn.GELU, nn.ELU, *NOTHING)
ACTIVATIONS = (
    functional.relu, functional.relu6, functional.leaky_relu, functional.hardswish, functional.silu,
    functional.gelu, functional.elu, functional.dropout, torch.relu, torch.relu_, "relu", "relu_",
)  # fmt: skip


@dataclass(frozen=True)
class ResidualBlock:
    """A submodule whose output is its input plus a branch: y = act(x + f(x)), or without the activation."""

    name: str
    layers: tuple[str, ...]  # convolutions and linear layers inside, in execution order
    source: str  # name of the node that the block reads in the traced program
    result: str  # name of the node that leaves it


@dataclass(frozen=True)
class BlockSearch:
    """The blocks of a network that can be left out, and why others cannot."""

    blocks: tuple[ResidualBlock, ...]  # in execution order
    refused: Mapping[str, str]  # submodule that holds a residual sum -> why it must stay


def find_blocks(model: nn.Module, graph: ChannelGraph) -> BlockSearch:
    """Return the residual blocks of a network: the innermost submodules around a residual sum.

    A block can be left out where one tensor enters it and one leaves it, and its sum adds the input itself.
    Channel groups must not begin inside and go on outside, since they are named after their first writer;
    nor may the network share the block's tensors. What remains is tried: the network is run without it.

    Args:
        model: the dense network.
        graph: its groups.
    """
    nodes: dict[str, list[fx.Node]] = {}
    for node in graph.program.nodes:
        for name in _modules_around(node):
            nodes.setdefault(name, []).append(node)
    found: dict[str, ResidualBlock] = {}
    refused: dict[str, str] = {}
    for node in graph.program.nodes:
        around = _modules_around(node)
        if node.target not in ADDITIONS or len(node.all_input_nodes) != 2 or not around:
            continue
        name = around[-1]
        block = _block(model, graph, name, nodes[name], node)
        if name in found or name in refused:
            refused[name] = "it holds several residual sums"
        elif isinstance(block, ResidualBlock):
            found[name] = block
        else:
            refused[name] = block
    found = {name: block for name, block in found.items() if name not in refused}
    if not _runs_without(model, graph, found):
        alone = [name for name in found if not _runs_without(model, graph, [name])]
        refused |= dict.fromkeys(alone, "the forward around it does not run without it")
    return BlockSearch(tuple(block for name, block in found.items() if name not in refused), refused)


def without_blocks(graph: ChannelGraph, blocks: Sequence[ResidualBlock]) -> ChannelGraph:
    """Return the graph of the network without some blocks, in execution order: each passes its input on."""
    program = copy.deepcopy(graph.program)
    nodes = {old.name: new for old, new in zip(graph.program.nodes, program.nodes, strict=True)}
    gone: set[str] = set()
    for block in blocks:
        source = nodes[block.source]
        nodes[block.result].replace_all_uses_with(source)
        nodes[block.result] = source  # what the next block may read
        for node in reversed(list(program.nodes)):
            if block.name in _modules_around(node) or (node.op == "get_attr" and not node.users):
                gone.add(node.name)
                program.erase_node(node)
    names = [block.name for block in blocks]
    stays = {key for key, constant in graph.constants.items() if constant.node not in gone}
    groups = (_without(group, names, stays) for group in graph.groups)
    return replace(
        graph,
        program=program,
        groups=tuple(group for group in groups if group.writers),
        layers={
            name: layer for name, layer in graph.layers.items() if not any(inside(one, name) for one in names)
        },
        constants={key: graph.constants[key] for key in graph.constants if key in stays},
    )


def inside(block: str, owner: str) -> bool:
    """Return whether a layer or parameter, by its name, lies inside a submodule."""
    return owner.startswith(f"{block}.")


def _without(group: ChannelGroup, blocks: Sequence[str], constants: set[str]) -> ChannelGroup:
    def kept(members: tuple[Member, ...]) -> tuple[Member, ...]:
        return tuple(one for one in members if not any(inside(block, one.owner) for block in blocks))

    return replace(
        group,
        writers=kept(group.writers),
        carriers=kept(group.carriers),
        readers=kept(group.readers),
        parameters=kept(group.parameters),
        constants=tuple(one for one in group.constants if one.owner in constants),
    )


def _modules_around(node: fx.Node) -> list[str]:
    """Return the names of the modules whose forward a node belongs to, outermost first."""
    names = [str(name) for name, _ in (node.meta.get(STACK) or {}).values()]
    return names[:-1] if node.op == "call_module" else names


def _block(
    model: nn.Module, graph: ChannelGraph, name: str, within: list[fx.Node], total: fx.Node
) -> ResidualBlock | str:
    """Return the block around a sum, or why it must stay."""
    members = set(within)
    sources = {read for node in within for read in node.all_input_nodes if read not in members}
    results = {node for node in within if any(user not in members for user in node.users)}
    if len(sources) != 1 or len(results) != 1:
        return f"{len(sources)} tensors enter it and {len(results)} leave it, not one each"
    (source,), (result,) = sources, results
    if source not in {_past_nothing(model, read) for read in total.all_input_nodes}:
        return "what its residual sum adds is not its input itself"
    if not _only_activated(model, total, result):
        return "more than an activation follows its residual sum"
    for group in graph.groups:
        owners = [writer.owner for writer in group.writers]
        if inside(name, owners[0]) and not all(inside(name, owner) for owner in owners):
            return f"the channel group {group.name} begins in it and goes on after it"
    outside = {id(one) for key, one in _tensors(model) if not inside(name, key)}
    if any(id(one) in outside for key, one in _tensors(model) if inside(name, key)):
        return "the network uses its tensors elsewhere too"
    layers = tuple(layer for layer in graph.layers if inside(name, layer))
    return ResidualBlock(name, layers, source.name, result.name) if layers else "it holds no layer"


def _tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


@torch.no_grad()
def _runs_without(model: nn.Module, graph: ChannelGraph, names: Iterable[str]) -> bool:
    """Return whether a network runs without blocks and gives what it does if they pass their input on."""
    example, shorter = example_image(model, graph.input_shape), copy.deepcopy(model)
    skipped = copy.deepcopy(model)
    for name in names:
        shorter.set_submodule(name, nn.Identity())
        skipped.get_submodule(name).register_forward_hook(lambda _, args, output: args[0].clone())
    try:
        with evaluating(shorter, skipped):
            outputs = [pytree.tree_leaves(network(example.clone())) for network in (shorter, skipped)]
            return all(torch.equal(*pair) for pair in zip(*outputs, strict=True))
    except Exception as error:  # user code may ask a block for anything
        raise_machine_failure(error)
        return False


def _past_nothing(model: nn.Module, node: fx.Node) -> fx.Node:
    """Return what a module that does nothing has read; for any other node, itself."""
    while node.op == "call_module" and _does_nothing(model.get_submodule(str(node.target))):
        (node,) = node.all_input_nodes
    return node


def _does_nothing(module: nn.Module) -> bool:
    return isinstance(module, NOTHING) or (type(module) is nn.Sequential and not len(module))


def _only_activated(model: nn.Module, total: fx.Node, result: fx.Node) -> bool:
    """Return whether nothing but activations lies between a sum and the block's result."""
    node = result
    while node is not total:
        target = node.target
        if node.op == "call_module":
            allowed = isinstance(model.get_submodule(str(target)), ACTIVATION_MODULES)
        else:
            allowed = target in ACTIVATIONS
        if not allowed or len(node.all_input_nodes) != 1:
            return False
        (node,) = node.all_input_nodes
    return True
