"""An fx interpreter that runs several weight sets of one network side by side, operator by operator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunegym.pruning.graph import ChannelGraph
from prunegym.pruning.graph.tracing import BATCH_NORMS, argument_value, run_node


class Lockstep:
    """Interpreter of a traced program that runs each operator in all variants of a network before the next.

    Iterate over it: each node is yielded before it runs, and its inputs in each variant can be looked at with
    `inputs`. The variants' weights may be changed on the way, and values replaced.

    Args:
        graph: the network's groups; its `program` is followed.
        variants: the network and copies of it, with the weights and modules that each has at the moment.
        images: the images that all variants run on, [N, C, H, W], on the variants' device.
        layerwise: a seed. Every layer then reads noise with the statistics of the BatchNorms before it, not
            the outputs of the layers before it (Horton et al. 2022): one Gaussian N(beta, gamma^2) per
            BatchNorm, passed on through activations and joins. `inputs` is one layer further: such noise
            after its writer, whose weights correlate its channels.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        variants: Sequence[nn.Module],
        images: Tensor,
        *,
        layerwise: int | None = None,
    ) -> None:
        self._graph = graph
        self._images = images
        self._lanes = [_Lane(variant) for variant in variants]
        self._fresh = None if layerwise is None else _GaussianLane(variants[0], layerwise)

    @torch.no_grad()
    def __iter__(self) -> Iterator[fx.Node]:
        """Yield each node before it runs."""
        uses = {node: len(node.users) for node in self._graph.program.nodes}
        for node in self._graph.program.nodes:
            if node.op == "output":
                return
            yield node
            layer = self._graph.layers.get(str(node.target)) if node.op == "call_module" else None
            mixes_channels = layer is not None and not layer.depthwise
            for lane in self._lanes:
                source = self._fresh if self._fresh and mixes_channels else lane
                lane.run(node, self._images, source)
            if self._fresh:
                self._fresh.run(node, self._images, self._fresh)
            for read in node.all_input_nodes:
                uses[read] -= 1
                if not uses[read]:
                    for lane in (*self._lanes, *([self._fresh] if self._fresh else [])):
                        del lane.values[read]

    def inputs(self, node: fx.Node) -> list[Any]:
        """Return the first input of a node in each variant."""
        return [lane.argument(node.args[0]) for lane in self._lanes]

    def values(self, node: fx.Node) -> list[Any]:
        """Return the value of a node in each variant; it has run and is still to be used."""
        return [lane.values[node] for lane in self._lanes]

    def replace(self, node: fx.Node, variant: int, value: Tensor) -> None:
        """Replace the value of a node in one variant, for the nodes after it."""
        self._lanes[variant].values[node] = value


class _Lane:
    """One variant of the network, and the values of its nodes so far."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.values: dict[fx.Node, Any] = {}

    def argument(self, argument: Any) -> Any:
        """Return an argument of a node with values in the place of nodes."""
        return fx.node.map_arg(argument, lambda node: self.values[node])

    def run(self, node: fx.Node, images: Tensor, source: _Lane) -> None:
        """Compute a node with this variant's weights, on the inputs of the lane `source`."""
        self.values[node] = self._value(
            node, images, source.argument(node.args), source.argument(node.kwargs)
        )

    def _value(self, node: fx.Node, images: Tensor, args: Any, kwargs: Any) -> Any:
        if node.op == "placeholder":
            return argument_value(node, images)
        return run_node(self.model, node, args, kwargs)


class _GaussianLane(_Lane):
    """Noise with the statistics of the BatchNorms: independent between channels and between places."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        super().__init__(model)
        self._generator = torch.Generator().manual_seed(seed)

    def _value(self, node: fx.Node, images: Tensor, args: Any, kwargs: Any) -> Any:
        module = self.model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, BATCH_NORMS):
            return super()._value(node, images, args, kwargs)
        noise = torch.randn(args[0].shape, generator=self._generator).to(args[0])
        shape = (1, -1, *[1] * (noise.dim() - 2))
        if type(module) not in BATCH_NORMS and module.running_var is not None:
            # it does more, as timm's, which activate too: it gets noise of the mean and variance it knows
            known: Any = module
            deviation = (known.running_var + known.eps).sqrt()
            return known(noise * deviation.view(shape) + known.running_mean.view(shape))
        if not module.affine:
            return noise
        return noise.mul_(module.weight.detach().abs().view(shape)).add_(module.bias.detach().view(shape))
