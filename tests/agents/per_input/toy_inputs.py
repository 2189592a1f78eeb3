"""A vector environment of inputs without a network: what each needs is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

GATES = ("early", "late")


class ToyInputs(VectorEnv[Any, Any, Any]):
    """Half of the inputs are hard: each loses the square of what it does not run; the others lose nothing.

    An action of -1 runs all of a gate, 1 nothing. The best policy within a budget b of less than half runs
    nothing for the easy ones and 2 b of each gate for the hard ones; it comes with a price of 2 b (1 - 2 b).
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012
    observation_names = ("hard", "late")
    observation_version = 1
    gate_names = GATES

    def __init__(self, inputs: int = 32, *, budget: float = 0.5, first_price: float = 1.0) -> None:
        self.num_envs = inputs
        self.budget, self.price, self.first_price = budget, 0.0, first_price
        self.single_observation_space = spaces.Box(0.0, 1.0, (2,), np.float32)
        self.single_action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, inputs)
        self.action_space = batch_space(self.single_action_space, inputs)
        self.seeds: list[int | None] = []  # that `reset` was given
        self.closed_down = False

    def marginal_price(self) -> float:
        return self.first_price

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.seeds.append(seed)
        return self._begin(), {}

    def step(self, actions: Any) -> Any:
        self._skipped.append((actions[:, 0].astype(np.float64) + 1) / 2)
        no = np.zeros(self.num_envs, dtype=bool)
        if len(self._skipped) < len(GATES):
            return self._observe(), np.zeros(self.num_envs), no, no, {}
        ratios = np.stack(self._skipped, axis=1)
        macs, loss = 1 - ratios.mean(1), self._hard * (ratios**2).mean(1)
        rewards = 1 - loss - self.price * (macs / self.budget - 1)
        infos = {"macs": macs, "agrees": loss < 0.1, "loss": loss, "reference": np.ones(self.num_envs)}
        return self._begin(), rewards, ~no, no, {**infos, "ratios": ratios}

    def episode_start(self) -> dict[str, Any]:
        return {"random": self._start, "price": self.price}

    def restart_from(self, state: Mapping[str, Any]) -> None:
        self.np_random.bit_generator.state = state["random"]
        self.price = state["price"]

    def close_extras(self, **settings: Any) -> None:
        self.closed_down = True

    def _begin(self) -> Any:
        self._start = self.np_random.bit_generator.state
        self._hard = (self.np_random.permutation(self.num_envs) % 2).astype(np.float64)
        self._skipped: list[Any] = []
        return self._observe()

    def _observe(self) -> Any:
        late = np.full(self.num_envs, float(len(self._skipped)))
        return np.stack([self._hard, late], axis=1).astype(np.float32)
