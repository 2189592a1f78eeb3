"""A toy environment: no network, and a reward whose best plan is known."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest


class ToyPruning(gym.Env):
    """Each group has its own best ratios; the reward falls with the squared distance from them.

    The first feature is drawn at each reset, so that runs only repeat if the random state is kept.
    """

    def __init__(self, groups: int = 5, accuracy: bool = True) -> None:
        self.group_names = tuple(f"layer{index}.conv" for index in range(groups))
        self.observation_names = ("noise", *(f"is_{name}" for name in self.group_names))
        self.observation_version = 1
        self.observation_space = gym.spaces.Box(0.0, 1.0, (groups + 1,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.best_actions = np.stack([np.full(groups, -0.5), np.linspace(0.8, -0.8, groups)], axis=1)
        self.accuracy = accuracy
        self.evaluations = 0
        self.validated: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self._actions: list[np.ndarray] = []
        self._noise = self.np_random.random()
        return self._observe(), {}

    def step(self, action: np.ndarray) -> Any:
        self._actions.append(np.asarray(action))
        done = len(self._actions) == len(self.group_names)
        result = self._evaluate() if done else None
        info = {"episode_result": result} if result else {}
        return self._observe(), result["reward"]["total"] if result else 0.0, done, False, info

    def validate(self, plan: Any) -> float:
        self.validated.append(plan)
        return -abs(plan["layer0.conv"]["static_ratio"] - 0.5)

    def _observe(self) -> np.ndarray:
        place = np.arange(len(self.group_names)) == len(self._actions)
        return np.array([self._noise, *place], dtype=np.float32)

    def _evaluate(self) -> dict[str, Any]:
        self.evaluations += 1
        actions = np.array(self._actions, dtype=np.float64)
        loss = float(((actions - self.best_actions) ** 2).mean())
        plan = {
            name: {
                "static_ratio": float(0.45 * (1 + static)),
                "runtime_ratio": float(0.5 * max(0.0, runtime)),
            }
            for name, (runtime, static) in zip(self.group_names, actions, strict=True)
        }
        reward = {"closeness": 1.0 - loss, "bonus": 0.25, "total": 1.25 - loss}
        accuracy = 1.0 - loss if self.accuracy else None
        return {"plan": plan, "reward": reward, "accuracy": accuracy, "macs": 0.5, "params": 0.4}


@pytest.fixture
def env() -> ToyPruning:
    return ToyPruning()


@pytest.fixture
def toy() -> type[ToyPruning]:
    """The class, for tests that need an environment of their own making or a second one."""
    return ToyPruning
