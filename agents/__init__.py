"""Agents that learn pruning decisions: Stable-Baselines3 algorithms, and searches as baselines."""

from prunegym.agents.compress import Compression, compress
from prunegym.agents.episode_log import EpisodeLog
from prunegym.agents.errors import AgentError
from prunegym.agents.learning.algorithms import ALGORITHMS, DEFAULT_ALGORITHM
from prunegym.agents.learning.policies import BUILTIN, load_policy, save_mean_policy, save_policy
from prunegym.agents.learning.training import LearningConfig, LearningResult, Recording, learn
from prunegym.agents.rollout import EpisodeResult, deterministic, exploring, run_episode
from prunegym.agents.search import SEARCHES, choose_on_validation

__all__ = [
    "ALGORITHMS",
    "BUILTIN",
    "DEFAULT_ALGORITHM",
    "SEARCHES",
    "AgentError",
    "Compression",
    "EpisodeLog",
    "EpisodeResult",
    "LearningConfig",
    "LearningResult",
    "Recording",
    "choose_on_validation",
    "compress",
    "deterministic",
    "exploring",
    "learn",
    "load_policy",
    "run_episode",
    "save_mean_policy",
    "save_policy",
]
