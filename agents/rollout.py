"""One episode from start to end, and the rules that act without learning."""

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
    """What one finished episode decided, and what came of it."""

    plan: PlainPlan
    reward: Mapping[str, float]  # the parts, and their "total"
    accuracy: float | None  # in [0, 1]; None without labels
    macs: float  # share of the dense network that remains
    params: float  # share of the dense network that remains

    @property
    def estimated(self) -> bool:
        """Whether the reward is an estimate from some of the images."""
        return bool(self.reward.get("estimated", False))

    @property
    def total(self) -> float:
        """The reward of the whole episode."""
        return self.reward["total"]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EpisodeResult:
        """Build a result from what the environment puts into `info`, or from what `to_dict` returned."""
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, fit for JSON."""
        return asdict(self)


class Predictor(Protocol):
    """A Stable-Baselines3 model or policy, as far as acting goes."""

    def predict(self, observation: Observation, *, deterministic: bool) -> tuple[Any, Any]:
        """Return the action and a state that feed-forward policies leave None."""


def deterministic(policy: Predictor) -> ActionRule:
    """Return a rule that takes the policy's most likely action, without exploring."""
    return lambda observation: policy.predict(observation, deterministic=True)[0]


def exploring(policy: Predictor) -> ActionRule:
    """Return a rule that draws from the policy's actions, as it does while learning."""
    return lambda observation: policy.predict(observation, deterministic=False)[0]


def run_episode(env: GymEnv, act: ActionRule, *, seed: int | None = None) -> EpisodeResult:
    """Run one episode, which costs one evaluation.

    Args:
        env: the environment; it is reset first.
        act: chooses the action from each observation.
        seed: of the environment's random numbers; None continues where they are.

    Returns:
        What the environment reported at the last step.
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
