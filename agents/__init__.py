"""Learn pruning decisions: Stable-Baselines3 algorithms and search baselines over one environment."""

from agents.algorithms import ALGORITHMS
from agents.compress import Compression, compress
from agents.errors import AgentError
from agents.policies import load_policy, save_policy
from agents.rollout import EpisodeResult, deterministic, run_episode, uniform
from agents.search import choose_on_validation, random_search
from agents.training import LearningResult, learn

__all__ = [
    "ALGORITHMS",
    "AgentError",
    "Compression",
    "EpisodeResult",
    "LearningResult",
    "choose_on_validation",
    "compress",
    "deterministic",
    "learn",
    "load_policy",
    "random_search",
    "run_episode",
    "save_policy",
    "uniform",
]
