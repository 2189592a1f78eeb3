"""Reusable policies: learned on several networks or budgets, and applied to others.

To learn one, pass `shared_env` to `learn`, and save the result with `save_policy`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunegym.agents.interface import GymEnv
from prunegym.agents.learning.algorithms import ALGORITHMS, with_overrides
from prunegym.agents.learning.policies import BUILTIN, Policy, fitting_hyperparameters, load_policy
from prunegym.agents.rollout import EpisodeResult, Predictor, deterministic, exploring, run_episode
from prunegym.agents.search import choose_on_validation
from prunegym.envs import Budget, BudgetRange, LayerPruningEnv, MultiNetworkEnv
from prunegym.envs.reward import UNIFORM_TOTAL
from prunegym.pruning.plan import CompressionPlan

logger = logging.getLogger(__name__)


def policy_folder(name: str) -> Path:
    """Return the folder of a policy: for "builtin" the one in this package, else the path itself."""
    return BUILTIN if name == "builtin" else Path(name)


def load_initial_policy(
    folder: Path, env: GymEnv, *, algorithm: str, hyperparameters: Mapping[str, Any]
) -> Policy:
    """Load a policy to continue from, and check that the algorithm can continue from it.

    Args:
        folder: a folder that `save_policy` wrote.
        env: the environment to learn in.
        algorithm: a name in `ALGORITHMS`.
        hyperparameters: values that replace the algorithm's defaults, see `with_overrides`.

    Raises:
        AgentError: the policy cannot be read, or was learned from other observations or by another algorithm.
    """
    policy = load_policy(folder, env)
    settings = with_overrides(ALGORITHMS[algorithm], hyperparameters)
    fitting_hyperparameters(policy, algorithm, settings, overridden=hyperparameters)
    policy.build(env)  # its tensors may have other shapes than its description says
    return policy


def shared_env(envs: Mapping[str, LayerPruningEnv]) -> GymEnv:
    """Return the environment for learning one policy: the only one, or one in which several take turns."""
    return MultiNetworkEnv(envs) if len(envs) > 1 else next(iter(envs.values()))


def plans_within(
    env: LayerPruningEnv, budget: Budget | BudgetRange, policy: Predictor
) -> dict[str, CompressionPlan]:
    """Return the plans of uniform pruning and of a policy, without exploration, within a budget.

    For a range these are the plans within the tightest, the middle and the loosest budget.

    Args:
        env: the environment of the network; its budget is changed.
        budget: the shares of the dense network that may remain.
        policy: a policy that fits the environment.

    Returns:
        "BUDGET uniform" and "BUDGET learned" for each budget -> plan.
    """
    plans = {}
    positions = (0.0, 0.5, 1.0)
    for single in [budget] if isinstance(budget, Budget) else map(budget.budget_at, positions):
        env.set_budget(single)
        plans[f"{single} uniform"] = CompressionPlan(env.problem.allocation("uniform"))
        decided = run_episode(env, deterministic(policy))
        plans[f"{single} learned"] = CompressionPlan(decided.plan)
    return plans


def apply_policy(env: LayerPruningEnv, folder: Path, *, samples: int = 0) -> EpisodeResult:
    """Return the episode of a saved policy without exploration, or the best of it and some sampled ones.

    A warning is logged if the policy decides worse than uniform pruning.

    Args:
        env: the environment of the network.
        folder: a folder that `save_policy` wrote.
        samples: number of further episodes with sampled actions; the validation images choose the best.

    Raises:
        PolicyError: see `load_policy`.
    """
    policy = load_policy(folder, env).build(env)
    decided = [run_episode(env, deterministic(policy))]
    if decided[0].total < UNIFORM_TOTAL:
        logger.warning(
            "the policy decides worse than uniform pruning here (reward %.3f against %.3f); "
            "go on from it with train --init-policy, or use --allocation uniform",
            decided[0].total,
            UNIFORM_TOTAL,
        )
    decided += [run_episode(env, exploring(policy)) for _ in range(samples)]
    return choose_on_validation(env, decided)
