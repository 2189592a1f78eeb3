"""Stepwise execution of a gated network, from gate to gate, with actions from outside."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunegym.pruning.graph import find_groups
from prunegym.pruning.graph.interpreter import Lockstep
from prunegym.pruning.modes import evaluating
from prunegym.pruning.runtime.gates import attach_gates_, detach_gates_, gates_of, pooled_input, with_fills
from prunegym.pruning.runtime.per_input import per_input_policy_of


class GatewiseExecution:
    """Runs batches of images through a network with per-input ratios, one gate at a time.

    Call `begin` with images, then `step` with the actions of each gate in turn. The result is that of the
    network itself, with these actions in the place of its policy's.

    Args:
        model: a network in evaluation mode whose gates have a PerInputPolicy; used as it is.
        input_shape: the shape of one image.
    """

    def __init__(self, model: nn.Module, input_shape: Sequence[int]) -> None:
        gates = gates_of(model)
        assert gates is not None
        self.ratios = per_input_policy_of(model)
        detach_gates_(model)
        self._graph = find_groups(model, input_shape)
        gates.handles.clear()
        attach_gates_(model, gates)
        self._model = model
        self._gates = [gates.gate_for(site.group) for site in gates.sites]
        readers = gates.by_reader()
        self._writers = [site.writer for site in gates.sites]
        self._gated = [readers.get(site.writer, []) for site in gates.sites]
        self._layers = [model.get_submodule(name) for name in self._writers]

    @torch.no_grad()
    def begin(self, images: Tensor) -> Tensor:
        """Run images [batch, ...] up to the first gate; return their observations, [batch, features]."""
        self._lockstep = Lockstep(self._graph, [self._model], images)
        self._nodes = iter(self._lockstep)
        self._number = 0
        with evaluating(self._model):
            return self._to_next_gate()

    @torch.no_grad()
    def step(self, actions: Tensor) -> Tensor:
        """Decide the gate and run up to the next one; return its observations.

        Args:
            actions: [batch], in [-1, 1].

        Returns:
            Observations, [batch, features]; after the last gate the network's output.
        """
        self.ratios.action_override = actions
        self._number += 1
        with evaluating(self._model):
            if self._number < len(self._writers):
                return self._to_next_gate()
            deque(self._nodes, maxlen=0)  # runs them
        output = next(node for node in self._graph.program.nodes if node.op == "output")
        (value,) = self._lockstep.values(output.args[0])
        return value

    def _to_next_gate(self) -> Tensor:
        writer = self._writers[self._number]
        node = next(node for node in self._nodes if node.op == "call_module" and node.target == writer)
        (seen,) = self._lockstep.inputs(node)
        pooled = with_fills(pooled_input(self._layers[self._number], seen), self._gated[self._number])
        scores = self._gates[self._number].scores(pooled)
        return self.ratios.observe(self._number, pooled, scores)
