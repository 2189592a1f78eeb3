"""Pruning decisions as Gymnasium environments."""

from prunegym.envs.allocation import ALLOCATIONS, evenly_gated, static_plan
from prunegym.envs.budget import Budget, BudgetRange, Limits, parse_budget
from prunegym.envs.input_pruning import InputPruningVectorEnv
from prunegym.envs.layer_pruning import LayerPruningEnv
from prunegym.envs.multi_network import MultiNetworkEnv
from prunegym.envs.problem import ProblemConfig, PruningProblem
from prunegym.envs.tasks import (
    TASKS,
    DataSource,
    NetworkSource,
    Task,
    count_classes,
    load_task,
    make_env,
    task_problem,
    trains_itself,
)

__all__ = [
    "ALLOCATIONS",
    "TASKS",
    "Budget",
    "BudgetRange",
    "DataSource",
    "InputPruningVectorEnv",
    "LayerPruningEnv",
    "Limits",
    "MultiNetworkEnv",
    "NetworkSource",
    "ProblemConfig",
    "PruningProblem",
    "Task",
    "count_classes",
    "evenly_gated",
    "load_task",
    "make_env",
    "parse_budget",
    "static_plan",
    "task_problem",
    "trains_itself",
]
