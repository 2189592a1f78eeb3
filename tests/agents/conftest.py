"""A toy environment: no network, and a reward whose best plan is known."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from prunegym.agents.learning import training
from prunegym.agents.learning.algorithms import DEFAULT_ALGORITHM
from prunegym.agents.learning.training import LearningConfig, LearningResult, Recording

CONFIG = {one.name for one in fields(LearningConfig)}

STATIC_AT_ZERO, RUNTIME_AT_ZERO = 0.45, 0.25  # ratios that an action of zero stands for


def learn(
    env, *, episodes: int, seed: int, algorithm: str = DEFAULT_ALGORITHM, **settings: Any
) -> LearningResult:
    """Learn with settings by name, each put into the record that it belongs to."""
    config = LearningConfig(**{name: value for name, value in settings.items() if name in CONFIG})
    recording = Recording(**{name: value for name, value in settings.items() if name not in CONFIG})
    return training.learn(
        env, episodes=episodes, seed=seed, algorithm=algorithm, config=config, recording=recording
    )


class ToyPruning(gym.Env):
    """Each group has its own best ratios; the reward falls with the squared distance from them.

    The first feature is drawn at each reset, so that runs only repeat if the random state is kept. Equal
    plans are looked up; `measured` counts the others, in whatever process.
    """

    networks = 1
    observation_version = 1
    observation_normaliser = "none"
    action_mode = "centred"
    techniques = ("gates", "channels")
    action_names = ("runtime_ratio", "static_ratio")

    def __init__(self, groups: int = 5, accuracy: bool = True) -> None:
        self.site_names = tuple(f"layer{index}.conv" for index in range(groups))
        self.admitted = np.ones((groups, 2), dtype=bool)
        self.observation_names = ("noise", *(f"is_{name}" for name in self.site_names))
        self.observation_space = gym.spaces.Box(0.0, 1.0, (groups + 1,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.best_actions = np.stack([np.full(groups, -0.5), np.linspace(0.8, -0.8, groups)], axis=1)
        self.accuracy = accuracy
        self.evaluations = 0  # asked for in this process, known plans included
        self.measured = multiprocessing.Value("i", 0)
        self.known: dict[str, dict[str, Any]] = {}
        self.validated: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self._actions: list[np.ndarray] = []
        self._noise = self.np_random.random()
        return self._observe(), {}

    def step(self, action: np.ndarray) -> Any:
        self._actions.append(np.asarray(action, dtype=np.float64))
        done = len(self._actions) == len(self.site_names)
        result = self._evaluate() if done else None
        info = {"episode_result": result} if result else {}
        return self._observe(), result["reward"]["total"] if result else 0.0, done, False, info

    def evaluate(self, plan: Any) -> dict[str, Any]:
        self.evaluations += 1
        if (key := json.dumps(plan)) not in self.known:
            with self.measured.get_lock():
                self.measured.value += 1
            self.known[key] = self._measure(plan)
        return self.known[key]

    def remember(self, result: Mapping[str, Any]) -> None:
        self.known[json.dumps(result["plan"])] = dict(result)

    def episode_state(self) -> dict[str, Any]:
        return {"random": self.np_random.bit_generator.state}

    def restore_episode_state(self, state: Mapping[str, Any]) -> None:
        self.np_random.bit_generator.state = state["random"]

    def surrogate_env(self, predict: Any) -> ToyPruning:
        return SurrogateToy(self, predict)

    @property
    def problem(self) -> ToyPruning:
        """What validates plans: the toy itself."""
        return self

    def validate(self, plan: Any) -> float:
        self.validated.append(plan)
        return -abs(plan["layer0.conv"]["static_ratio"] - 0.5)

    def _observe(self) -> np.ndarray:
        place = np.arange(len(self.site_names)) == len(self._actions)
        return np.array([self._noise, *place], dtype=np.float32)

    def _evaluate(self) -> dict[str, Any]:
        return self.evaluate(self._plan())

    def _plan(self) -> dict[str, dict[str, float]]:
        return {
            name: {
                "static_ratio": float(STATIC_AT_ZERO * (1 + static)),
                "runtime_ratio": float(RUNTIME_AT_ZERO * (1 + runtime)),
            }
            for name, (runtime, static) in zip(self.site_names, self._actions, strict=True)
        }

    def _measure(self, plan: Any) -> dict[str, Any]:
        actions = [
            [one["runtime_ratio"] / RUNTIME_AT_ZERO - 1, one["static_ratio"] / STATIC_AT_ZERO - 1]
            for one in plan.values()
        ]
        return self._result(plan, float(((np.array(actions) - self.best_actions) ** 2).mean()))

    def _result(self, plan: Any, loss: float) -> dict[str, Any]:
        reward = {"loss": loss, "reference": 0.5, "expected": 1.0, "bonus": 0.25, "total": 1.25 - loss}
        accuracy = 1.0 - loss if self.accuracy else None
        return {"plan": plan, "reward": reward, "accuracy": accuracy, "shares": {"macs": 0.5, "params": 0.4}}


class SurrogateToy(ToyPruning):
    def __init__(self, toy: ToyPruning, predict: Any) -> None:
        super().__init__(len(toy.site_names), toy.accuracy)
        self._predict = predict

    def _evaluate(self) -> dict[str, Any]:
        return self._result(self._plan(), 0.5 * self._predict(self._plan(), 1.0))


@pytest.fixture
def env() -> ToyPruning:
    return ToyPruning()


@pytest.fixture
def toy() -> type[ToyPruning]:
    """The class, for tests that need an environment of their own making or a second one."""
    return ToyPruning
