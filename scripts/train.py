"""Learn a pruning policy; write policy, plan, compressed network, metrics, pictures and curves."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from prunegym.agents import ALGORITHMS, SEARCHES, EpisodeLog, save_policy
from prunegym.agents.comparison import Comparison, ComparisonConfig, compare
from prunegym.agents.interface import GymEnv
from prunegym.agents.learning.algorithms import read_overrides, with_overrides
from prunegym.agents.learning.policies import Policy
from prunegym.agents.learning.training import learn
from prunegym.agents.pictures import reasons
from prunegym.agents.reuse import load_initial_policy, plans_within, policy_folder, shared_env
from prunegym.agents.vector.ray_connection import connected
from prunegym.envs import Budget, BudgetRange, LayerPruningEnv, Task
from prunegym.pruning.evaluation.comparison import measure_rows
from prunegym.pruning.evaluation.evaluate import Evaluation
from prunegym.pruning.files import write_json
from prunegym.pruning.plan import PruningPlan
from prunegym.pruning.registry import unknown_name
from prunegym.pruning.storage.compressed import folder_written_whole, save_compressed
from prunegym.scripts import options
from prunegym.scripts.cli import run_verb
from prunegym.scripts.latency import predicted_and_measured
from prunegym.scripts.report import write_pictures
from prunegym.scripts.run_folder import (
    EPISODES,
    METRICS,
    check_out,
    check_source,
    claimed,
    manifest_of,
    open_run,
    run_config,
    show,
)

BASELINE = "random"  # where none is named
MAY_DIFFER = ("episodes", "baselines")  # when a run is resumed
CANDIDATES = {
    "final": "final policy",
    "best": "best plan seen",
    "initial": "initial policy, unchanged",  # at one more evaluation
}


def build_parser() -> options.Parser:
    """Return the parser of this verb."""
    parser = options.Parser("train", __doc__ or "")
    options.add_network_flags(parser)
    options.add_budget_flag(parser, ranges=True)
    options.add_pruning_flags(parser)
    options.add_learning_flags(parser)
    options.add_output_flags(parser, resume=True)
    return parser


def run(argv: Sequence[str]) -> None:
    """Carry the verb out."""
    args = build_parser().parse(argv)
    budget = options.budget_of(args)
    _check(args, budget)
    out = args.out or Path("runs") / args.model.replace("/", "-")
    if args.baselines is None:
        args.baselines = [BASELINE]
    with ExitStack() as stack:
        stack.enter_context(claimed(out))
        check_out(out, args, may_differ=MAY_DIFFER)
        if args.init_policy:
            check_source(policy_folder(args.init_policy), out)
        torch.manual_seed(args.seed)
        if args.cluster:  # before the work begins, and once for agent and baselines
            stack.enter_context(connected(args.cluster, n_envs=args.n_envs))
        _train(out, args, budget)


def _check(args: argparse.Namespace, budget: Budget | BudgetRange) -> None:
    """Refuse flags that do not go together, and unknown names, before the work begins.

    Raises:
        UsageError: flags do not go together.
        AgentError: there is no such algorithm or hyper-parameter.
        UnknownNameError: there is no such criterion or compensation.
    """
    if args.score and args.first_images:
        raise options.UsageError("--score judges whole networks; leave out --first-images")
    if args.algo in ALGORITHMS:
        with_overrides(ALGORITHMS[args.algo], read_overrides(args.hyper))
    elif args.algo not in SEARCHES:
        raise unknown_name("algorithm", args.algo, [*ALGORITHMS, *SEARCHES])
    elif args.hyper or args.init_policy:
        raise options.UsageError(f"{args.algo} learns no policy; leave out --hyper and --init-policy")
    options.method_of(args)
    if args.baselines and (args.also or isinstance(budget, BudgetRange)):
        raise options.UsageError("--baselines go with one network and one budget; leave them out")


def _train(out: Path, args: argparse.Namespace, budget: Budget | BudgetRange) -> None:
    if args.also or isinstance(budget, BudgetRange):
        if args.algo not in ALGORITHMS:
            raise options.UsageError(f"{args.algo} searches for one plan; give one network and one budget")
        _train_for_reuse(out, args, budget)
    else:
        _train_for_one(out, args, budget)


def _train_for_one(out: Path, args: argparse.Namespace, budget: Budget) -> None:
    """Find a plan for one network within one budget."""
    task = options.task_of(args, budget)
    env = acting_env = options.env_of(task, args, **options.reward_settings(args))
    if args.algo in ALGORITHMS and ALGORITHMS[args.algo].actions != env.action_mode:
        acting_env = options.env_of(
            task, args, actions=ALGORITHMS[args.algo].actions, **options.reward_settings(args)
        )
    config = ComparisonConfig(
        algorithm=args.algo,
        episodes=args.episodes,
        baselines=args.baselines,
        seed=args.seed,
        hyperparameters=read_overrides(args.hyper),
        initial_policy=_initial_policy(acting_env, args),  # refused before a run begins
        n_envs=args.n_envs,
        cluster=args.cluster,
    )

    def rewrite_config() -> None:
        if args.resume:  # not before: a run whose checkpoint is damaged stays as it is
            open_run(out, run_config(args), overwrite=False)

    if not args.resume:
        open_run(out, run_config(args), overwrite=args.overwrite)
    found = compare(
        env,
        config,
        acting_env=acting_env,
        out=out,
        resume=args.resume,
        progress=not args.quiet,
        on_learned=rewrite_config,
    )
    if found.learned is not None:
        with folder_written_whole(out / "policy") as folder:
            save_policy(found.learned.model, acting_env, folder, learned_on=options.learned_on(args))
    _write(out, env, task, args, found)


def _train_for_reuse(out: Path, args: argparse.Namespace, budget: Budget | BudgetRange) -> None:
    """Learn one policy on several networks, or for a range of budgets; write it and what it does on each."""
    tasks = {
        name: options.task_of(args, budget, model=name, weights=weights)
        for name, weights in options.networks_of(args)
    }
    settings = {"actions": ALGORITHMS[args.algo].actions, **options.reward_settings(args)}
    envs = {name: options.env_of(task, args, **settings) for name, task in tasks.items()}
    env = shared_env(envs)
    policy = _initial_policy(env, args)  # refused before a run begins
    if not args.resume:
        open_run(out, run_config(args), overwrite=args.overwrite)
    learned = learn(
        env,
        algorithm=args.algo,
        episodes=args.episodes,
        seed=args.seed,
        hyperparameters=read_overrides(args.hyper),
        initial_policy=policy,
        n_envs=args.n_envs,
        cluster=args.cluster,
        tensorboard_log=out / "tensorboard",
        progress=not args.quiet,
        log=EpisodeLog(out / EPISODES),
        checkpoint=out / "checkpoint",
        resume=args.resume,
    )
    if args.resume:
        open_run(out, run_config(args), overwrite=False)
    with folder_written_whole(out / "policy") as folder:
        save_policy(learned.model, env, folder, learned_on=options.learned_on(args))
    rows: dict[str, Evaluation] = {}
    for name, task in tasks.items():
        plans = {"dense": PruningPlan(), **plans_within(envs[name], task.budget, learned.model)}
        named = {f"{name} {row}": plan for row, plan in plans.items()}
        rows |= measure_rows(envs[name].network, named, task.test_metric).evaluations
    record = {
        "rows": {name: row.to_dict() for name, row in rows.items()},
        "gated_groups": {},
        "verdict": _reuse_verdict(rows),
    }
    write_json(out / METRICS, record)
    write_pictures(out)
    show(record, f"one policy, {args.episodes} evaluations, {options.judged_on(args)}", as_json=args.json)
    print(f"written to {out}; apply it with: prunegym prune --policy {out / 'policy'} ...", file=sys.stderr)


def _initial_policy(env: GymEnv, args: argparse.Namespace) -> Policy | None:
    if args.init_policy is None:
        return None
    return load_initial_policy(
        policy_folder(args.init_policy), env, algorithm=args.algo, hyperparameters=read_overrides(args.hyper)
    )


def _reuse_verdict(rows: Mapping[str, Evaluation]) -> str:
    gains = []
    for name, row in rows.items():
        if name.endswith(" learned"):
            gain = row.quality - rows[name.removesuffix("learned") + "uniform"].quality
            gains.append(f"{100 * gain:+.1f}" if row.score is None else f"{gain:+.4g}")
    return f"learned against uniform{', in points' if row.score is None else ''}: {', '.join(gains)}"


def _write(
    out: Path,
    env: LayerPruningEnv,
    task: Task,
    args: argparse.Namespace,
    found: Comparison,
) -> None:
    name, chosen = found.name, found.chosen
    plans = {
        "dense": PruningPlan(),
        **{name: PruningPlan.from_dict(one.plan) for name, one in chosen.items()},
    }
    rows = measure_rows(env.network, plans, task.test_metric)
    plans[name].save(out / "plan.json")
    save_compressed(
        out / "compressed",
        rows.compressed[name],
        manifest_of(task, args, plans[name], rows.evaluations[name]),
    )
    facts = env.group_summary()
    predicted = predicted_and_measured(env.network, rows, name, plans[name], task.budget)
    even, mine = (env.shares(chosen[row].plan) for row in ("uniform", name))
    latency = mine["latency"] / even["latency"] if predicted else None
    record = {
        "rows": {row: one.to_dict() for row, one in rows.evaluations.items()},
        "gated_groups": rows.gated,
        **predicted,
        "verdict": verdict(rows.evaluations, name, latency=latency),
        f"{name}_is": CANDIDATES[found.winner],
        "candidates": {
            key: {**one.to_dict(), "validation": env.validate(one.plan)}
            for key, one in found.candidates.items()
        },
        "plans": {name: one.plan for name, one in chosen.items()},
        "groups": facts,
        "reasons": reasons(facts, chosen["uniform"].plan, chosen[name].plan),
    }
    write_json(out / METRICS, record)
    write_pictures(out)
    title = (
        f"{args.model} at {' '.join(args.budget)}, {args.episodes} evaluations each, "
        f"{options.judged_on(args)}"
    )
    show(record, title, as_json=args.json)
    curves = out / "tensorboard"
    watch = f"; watch the curves with: tensorboard --logdir {curves}" if curves.exists() else ""
    print(f"written to {out}{watch}", file=sys.stderr)


def verdict(rows: Mapping[str, Evaluation], name: str, *, latency: float | None = None) -> str:
    """Say in a line whether the chosen plan beats the uniform one at no more MACs.

    Args:
        rows: "uniform" and that of the chosen plan among them.
        name: of its row.
        latency: the predicted latency of its plan as a multiple of the uniform one's, where the budget limits
            latency; it is then compared in the place of MACs.
    """
    learned, even = rows[name], rows["uniform"]
    gain = learned.quality - even.quality
    said = f"{100 * gain:+.1f} points" if learned.score is None else f"{gain:+.4g}"
    spent, measure = (learned.macs / even.macs, "MACs") if latency is None else (latency, "latency")
    if gain > 0 and spent <= 1:
        return f"{name} beats uniform by {said.removeprefix('+')} at no more {measure}"
    return f"{name} does NOT beat uniform on this seed: {said} at {spent:.3f} times its {measure}"


if __name__ == "__main__":
    sys.exit(run_verb("train"))
