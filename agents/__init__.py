"""Learn pruning decisions: Stable-Baselines3 algorithms and search baselines over one environment."""

from agents.algorithms import ALGORITHMS, DEFAULT_ALGORITHM
from agents.compress import Compression, compress
from agents.episode_log import EpisodeLog
from agents.errors import AgentError
from agents.policies import BUILTIN, load_policy, save_mean_policy, save_policy
from agents.rollout import EpisodeResult, deterministic, exploring, run_episode
from agents.search import SEARCHES, choose_on_validation
from agents.training import LearningResult, learn

__all__ = [
    "ALGORITHMS",
    "BUILTIN",
    "DEFAULT_ALGORITHM",
    "SEARCHES",
    "AgentError",
    "Compression",
    "EpisodeLog",
    "EpisodeResult",
    "LearningResult",
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
