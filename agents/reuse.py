"""Policies for reuse: one policy learned on several networks or budgets, and applied to others.

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
from prunegym.pruning.plan import PruningPlan

logger = logging.getLogger(__name__)


def policy_folder(name: str) -> Path:
    """Return the folder of a policy: of the one that ships with the package for "builtin", else the path."""
    return BUILTIN if name == "builtin" else Path(name)


def load_initial_policy(
    folder: Path, env: GymEnv, *, algorithm: str, hyperparameters: Mapping[str, Any]
) -> Policy:
    """Return a policy to continue from, after checking that an algorithm can.

    Args:
        folder: what `save_policy` filled.
        env: the environment to learn in.
        algorithm: a name in `ALGORITHMS`.
        hyperparameters: that differ from the algorithm's own.

    Raises:
        AgentError: it cannot be read, or is of other observations or of another algorithm.
    """
    policy = load_policy(folder, env)
    settings = with_overrides(ALGORITHMS[algorithm], hyperparameters)
    fitting_hyperparameters(policy, algorithm, settings, overridden=hyperparameters)
    policy.build(env)  # its tensors may have other shapes than its description says
    return policy


def shared_env(envs: Mapping[str, LayerPruningEnv]) -> GymEnv:
    """Return the environment to learn one policy in: the only one, or one whose episodes take turns."""
    return MultiNetworkEnv(envs) if len(envs) > 1 else next(iter(envs.values()))


def plans_within(
    env: LayerPruningEnv, budget: Budget | BudgetRange, policy: Predictor
) -> dict[str, PruningPlan]:
    """Return what uniform pruning and a policy, without exploring, decide within a budget.

    Of a range: within the tightest, the middle and the loosest budget.

    Args:
        env: of the network to decide about; its budget is changed.
        budget: what may remain.
        policy: that fits the environment.

    Returns:
        "BUDGET uniform" and "BUDGET learned" for each budget -> plan.
    """
    plans = {}
    positions = (0.0, 0.5, 1.0)
    for one in [budget] if isinstance(budget, Budget) else map(budget.budget_at, positions):
        env.set_budget(one)
        plans[f"{one} uniform"] = PruningPlan.from_dict(env.problem.allocation("uniform"))
        decided = run_episode(env, deterministic(policy))
        plans[f"{one} learned"] = PruningPlan.from_dict(decided.plan)
    return plans


def apply_policy(env: LayerPruningEnv, folder: Path, *, samples: int = 0) -> EpisodeResult:
    """Return what a saved policy decides without exploring, or the best of that and some samples.

    A warning is logged where it decides worse than uniform pruning.

    Args:
        env: of the network to decide about.
        folder: what `save_policy` filled.
        samples: further episodes, which explore; the validation images choose the best.

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
