"""Running one episode from start to end with a policy, without learning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from prunegym.agents.errors import AgentError
from prunegym.agents.interface import ActionRule, GymEnv
from prunegym.envs.layer_pruning import Observation
from prunegym.envs.results import PlainPlan


@dataclass(frozen=True)
class EpisodeResult:
    """A finished episode: the plan it decided, the reward, and the cost of the network that remains."""

    plan: PlainPlan
    reward: Mapping[str, float]  # the terms of the reward by name, and their sum as "total"
    accuracy: float | None  # in [0, 1]; None without labels
    shares: Mapping[str, float]  # measure -> share of the dense network that remains

    @property
    def estimated(self) -> bool:
        """True if the reward was estimated from only some of the reward images."""
        return bool(self.reward.get("estimated", False))

    @property
    def total(self) -> float:
        """The total reward of the episode."""
        return self.reward["total"]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EpisodeResult:
        """Build a result from the environment's `info["episode_result"]` or the output of `to_dict`."""
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, fit for JSON."""
        return asdict(self)


class Predictor(Protocol):
    """Anything that chooses actions as a Stable-Baselines3 model or policy does."""

    def predict(self, observation: Observation, *, deterministic: bool) -> tuple[Any, Any]:
        """Return the action and the recurrent state, which is None in feed-forward policies."""


def deterministic(policy: Predictor) -> ActionRule:
    """Return a rule that takes the policy's most likely action, without exploring."""
    return lambda observation: policy.predict(observation, deterministic=True)[0]


def exploring(policy: Predictor) -> ActionRule:
    """Return a rule that samples from the policy's action distribution, as learning does."""
    return lambda observation: policy.predict(observation, deterministic=False)[0]


def run_episode(env: GymEnv, act: ActionRule, *, seed: int | None = None) -> EpisodeResult:
    """Run one episode, which costs one evaluation.

    Args:
        env: the environment; it is reset first.
        act: chooses the action from each observation.
        seed: seed of the environment's random numbers; None continues the current sequence.

    Returns:
        The result that the environment reports at the last step.
    """
    observation, _ = env.reset(seed=seed)
    done = False
    while not done:
        observation, _, terminated, truncated, info = env.step(act(observation))
        done = terminated or truncated
    return EpisodeResult.from_dict(info["episode_result"])


def require_episodes(episodes: int) -> None:
    """Raise AgentError unless there is at least one episode to run."""
    if episodes < 1:
        raise AgentError(
            f"episodes must be 1 or more, got {episodes}; each episode is one evaluation of a plan"
        )
