"""Pruning decisions as Gymnasium environments; importing this registers them by name."""

import gymnasium as gym

from envs.allocation import ALLOCATIONS, evenly_gated
from envs.budget import Budget, BudgetRange, Limits, parse_budget
from envs.input_pruning import InputPruningVectorEnv
from envs.layer_pruning import LayerPruningEnv
from envs.observation import LayerObservation
from envs.several_networks import SeveralNetworksEnv
from envs.tasks import TASKS, Task, count_classes, load_task, make_env, task_env, trains_itself

__all__ = [
    "ALLOCATIONS",
    "TASKS",
    "Budget",
    "BudgetRange",
    "InputPruningVectorEnv",
    "LayerObservation",
    "LayerPruningEnv",
    "Limits",
    "SeveralNetworksEnv",
    "Task",
    "count_classes",
    "evenly_gated",
    "load_task",
    "make_env",
    "parse_budget",
    "task_env",
    "trains_itself",
]

gym.register("LayerPruning-v0", entry_point="envs.tasks:make_env")
gym.register("InputPruning-v0", vector_entry_point="envs.input_pruning:InputPruningVectorEnv")
