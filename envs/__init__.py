"""Pruning decisions as Gymnasium environments; importing this registers "LayerPruning-v0"."""

import gymnasium as gym

from envs.budget import Budget, Limits
from envs.layer_pruning import LayerPruningEnv
from envs.observation import LayerObservation
from envs.tasks import TASKS, Task, count_classes, load_task, make_env, task_env, trains_itself

__all__ = [
    "TASKS",
    "Budget",
    "LayerObservation",
    "LayerPruningEnv",
    "Limits",
    "Task",
    "count_classes",
    "load_task",
    "make_env",
    "task_env",
    "trains_itself",
]

gym.register("LayerPruning-v0", entry_point="envs.tasks:make_env")
