"""Learn how much to compress where: pruning of trained CNNs as a Gymnasium environment.

Importing this package registers `prunegym/LayerPruning-v0` and `prunegym/InputPruning-v0` with Gymnasium.
The names below are imported when they are first used: a compressed network runs without what learning needs.

Example:
    small = prunegym.compress(net, calibration=loader, reward=held_out, budget={"macs": 0.5}).model
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import gymnasium as gym

if TYPE_CHECKING:
    from prunegym.agents.compress import Compression, compress
    from prunegym.envs.budget import Budget, BudgetRange, Limits
    from prunegym.envs.description import describe
    from prunegym.envs.input_pruning import InputPruningVectorEnv
    from prunegym.envs.layer_pruning import LayerPruningEnv
    from prunegym.envs.multi_network import MultiNetworkEnv
    from prunegym.envs.problem import ProblemConfig, PruningProblem
    from prunegym.envs.tasks import make_env
    from prunegym.pruning.method import Method
    from prunegym.pruning.plan import CompressionPlan
    from prunegym.pruning.storage.compressed import load_compressed as load

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "BudgetRange",
    "Compression",
    "CompressionPlan",
    "InputPruningVectorEnv",
    "LayerPruningEnv",
    "Limits",
    "Method",
    "MultiNetworkEnv",
    "ProblemConfig",
    "PruningProblem",
    "__version__",
    "compress",
    "describe",
    "load",
    "make_env",
]

_MODULES = {  # where each public name comes from
    "Budget": "envs.budget",
    "BudgetRange": "envs.budget",
    "Compression": "agents.compress",
    "CompressionPlan": "pruning.plan",
    "InputPruningVectorEnv": "envs.input_pruning",
    "LayerPruningEnv": "envs.layer_pruning",
    "Limits": "envs.budget",
    "Method": "pruning.method",
    "MultiNetworkEnv": "envs.multi_network",
    "ProblemConfig": "envs.problem",
    "PruningProblem": "envs.problem",
    "compress": "agents.compress",
    "describe": "envs.description",
    "load": "pruning.storage.compressed",
    "make_env": "envs.tasks",
}

gym.register("prunegym/LayerPruning-v0", entry_point="prunegym.envs.tasks:make_env")
gym.register(
    "prunegym/InputPruning-v0", vector_entry_point="prunegym.envs.input_pruning:InputPruningVectorEnv"
)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(
        import_module(f"prunegym.{_MODULES[name]}"), "load_compressed" if name == "load" else name
    )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
