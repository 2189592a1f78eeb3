"""Learn how much to compress where: pruning of trained CNNs as a Gymnasium environment.

Importing this package registers `prunegym/LayerPruning-v0` and `prunegym/InputPruning-v0` with Gymnasium.

Example:
    small = prunegym.compress(net, calibration=loader, reward=held_out, budget={"macs": 0.5}).model
"""

from prunegym.agents import Compression, compress
from prunegym.envs import (
    Budget,
    BudgetRange,
    InputPruningVectorEnv,
    LayerPruningEnv,
    Limits,
    MultiNetworkEnv,
    ProblemConfig,
    PruningProblem,
    make_env,
)
from prunegym.envs.description import describe
from prunegym.pruning.apply import Method
from prunegym.pruning.plan import LayerDecision, PruningPlan
from prunegym.pruning.storage.compressed import load_compressed as load

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "BudgetRange",
    "Compression",
    "InputPruningVectorEnv",
    "LayerDecision",
    "LayerPruningEnv",
    "Limits",
    "Method",
    "MultiNetworkEnv",
    "ProblemConfig",
    "PruningPlan",
    "PruningProblem",
    "__version__",
    "compress",
    "describe",
    "load",
    "make_env",
]
