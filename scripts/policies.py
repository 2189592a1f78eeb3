"""Policies for reuse: where they lie, learning one on several networks or budgets, and applying one."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prunegym.agents import (
    ALGORITHMS,
    BUILTIN,
    EpisodeLog,
    EpisodeResult,
    LearningResult,
    choose_on_validation,
    deterministic,
    exploring,
    load_policy,
    run_episode,
    save_policy,
)
from prunegym.agents.interface import GymEnv
from prunegym.agents.learning.algorithms import read_overrides, with_overrides
from prunegym.agents.learning.policies import Policy, fitting_hyperparameters
from prunegym.envs import Budget, BudgetRange, LayerPruningEnv, MultiNetworkEnv, Task, trains_itself
from prunegym.envs.reward import UNIFORM_TOTAL
from prunegym.pruning.evaluation.comparison import measure_rows
from prunegym.pruning.evaluation.evaluate import Evaluation
from prunegym.pruning.files import write_json
from prunegym.pruning.plan import PruningPlan
from prunegym.pruning.storage.compressed import folder_written_whole
from prunegym.scripts import options
from prunegym.scripts.report import write_pictures
from prunegym.scripts.run_folder import EPISODES, METRICS, open_run, run_config, show

logger = logging.getLogger(__name__)

Learn = Callable[[Any, Path, argparse.Namespace, EpisodeLog], LearningResult]


def policy_folder(name: str) -> Path:
    """Return the folder of a policy: of the one that ships with the package for "builtin", else the path."""
    return BUILTIN if name == "builtin" else Path(name)


def initial_policy(env: GymEnv, args: argparse.Namespace) -> Policy | None:
    """Return the policy that --init-policy names, found fit to go on from.

    Raises:
        AgentError: it cannot be read, or is of other observations or of another algorithm.
    """
    if args.init_policy is None:
        return None
    policy = load_policy(policy_folder(args.init_policy), env)
    overrides = read_overrides(args.hyper)
    settings = with_overrides(ALGORITHMS[args.algo], overrides)
    fitting_hyperparameters(policy, args.algo, settings, overridden=overrides)
    policy.build(env)  # its tensors may be of another shape than its description
    return policy


def train_for_reuse(out: Path, args: argparse.Namespace, budget: Budget | BudgetRange, learn: Learn) -> None:
    """Learn one policy on several networks, or for a range of budgets; write it and what it does on each.

    Args:
        out: folder of the run.
        args: the flags of `train`.
        budget: what may remain.
        learn: as `train` learns.
    """
    tasks = {
        name: options.task_of(args, budget, model=name, weights=weights) for name, weights in networks(args)
    }
    settings = {"actions": ALGORITHMS[args.algo].actions, **options.reward_settings(args)}
    envs = {name: options.env_of(task, args, **settings) for name, task in tasks.items()}
    env = MultiNetworkEnv(envs) if len(envs) > 1 else next(iter(envs.values()))
    initial_policy(env, args)  # refused before a run begins
    if not args.resume:
        open_run(out, run_config(args), overwrite=args.overwrite)
    learned = learn(env, out, args, EpisodeLog(out / EPISODES))
    if args.resume:
        open_run(out, run_config(args), overwrite=False)
    with folder_written_whole(out / "policy") as folder:
        save_policy(learned.model, env, folder, learned_on=options.learned_on(args))
    rows: dict[str, Evaluation] = {}
    for name, task in tasks.items():
        rows |= _rows(name, task, envs[name], learned)
    record = {
        "rows": {name: row.to_dict() for name, row in rows.items()},
        "gated_groups": {},
        "verdict": _verdict(rows),
    }
    write_json(out / METRICS, record)
    write_pictures(out)
    show(record, f"one policy, {args.episodes} evaluations, {options.judged_on(args)}", as_json=args.json)
    print(f"written to {out}; apply it with: prunegym prune --policy {out / 'policy'} ...", file=sys.stderr)


def networks(args: argparse.Namespace) -> list[tuple[str, Path | None]]:
    """Return the networks to learn on, and their weights.

    Raises:
        UsageError: one is named twice, or without the weights it needs.
    """
    found = [(args.model, args.weights)]
    for text in args.also:
        name, equals, weights = text.partition("=")
        if not equals and not trains_itself(name, args.data):
            raise options.UsageError(
                f"{name} is untrained: name its trained weights with --also {name}=WEIGHTS"
            )
        found.append((name, Path(weights) if equals else None))
    names = [name for name, _ in found]
    if len(set(names)) < len(names):
        raise options.UsageError(f"a network is named twice among {', '.join(names)}; name each once")
    return found


def _rows(name: str, task: Task, env: LayerPruningEnv, learned: LearningResult) -> dict[str, Evaluation]:
    """Return what uniform pruning and the policy, without exploring, do within some of the budgets."""
    plans = {f"{name} dense": PruningPlan()}
    for budget in _shown(task.budget):
        env.set_budget(budget)
        label = f"{name} {budget}"
        plans[f"{label} uniform"] = PruningPlan.from_dict(env.allocation("uniform"))
        decided = run_episode(env, deterministic(learned.model))
        plans[f"{label} learned"] = PruningPlan.from_dict(decided.plan)
    return dict(measure_rows(env.network, plans, task.test_metric).evaluations)


def _shown(budget: Budget | BudgetRange) -> list[Budget]:
    """Return the tightest, the middle and the loosest budget of a range."""
    return [budget] if isinstance(budget, Budget) else [budget.budget_at(place) for place in (0.0, 0.5, 1.0)]


def _verdict(rows: dict[str, Evaluation]) -> str:
    gains = []
    for name, row in rows.items():
        if name.endswith(" learned"):
            gain = row.quality - rows[name.removesuffix("learned") + "uniform"].quality
            gains.append(f"{100 * gain:+.1f}" if row.score is None else f"{gain:+.4g}")
    return f"learned against uniform{', in points' if row.score is None else ''}: {', '.join(gains)}"


def apply_policy(env: LayerPruningEnv, folder: Path, *, samples: int) -> EpisodeResult:
    """Return what a policy decides without exploring or, of that and more samples, the best on validation."""
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
