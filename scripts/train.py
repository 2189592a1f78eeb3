"""Learn a pruning policy; write policy, plan, compressed network, metrics, pictures and curves."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from prunegym.agents import (
    ALGORITHMS,
    SEARCHES,
    EpisodeLog,
    EpisodeResult,
    LearningResult,
    choose_on_validation,
    deterministic,
    run_episode,
    save_policy,
)
from prunegym.agents.interface import GymEnv
from prunegym.agents.learning.algorithms import read_overrides, with_overrides
from prunegym.agents.learning.training import learn
from prunegym.agents.pictures import reasons
from prunegym.agents.search import search
from prunegym.agents.vector.make import vectorized
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
from prunegym.scripts.policies import initial_policy, policy_folder, train_for_reuse
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
        train_for_reuse(out, args, budget, _learn)
    else:
        _train_for_one(out, args, budget)


def _train_for_one(out: Path, args: argparse.Namespace, budget: Budget) -> None:
    """Find a plan for one network within one budget."""
    task = options.task_of(args, budget)
    env = own = options.env_of(task, args, **options.reward_settings(args))
    if args.algo in ALGORITHMS and ALGORITHMS[args.algo].actions != env.action_mode:
        # baselines keep to the centred actions
        own = options.env_of(
            task, args, actions=ALGORITHMS[args.algo].actions, **options.reward_settings(args)
        )
    policy = initial_policy(own, args)  # refused before a run begins
    if not args.resume:
        open_run(out, run_config(args), overwrite=args.overwrite)
    even = EpisodeResult.from_dict(env.evaluate(env.allocation("uniform")))
    # no one may use more than uniform does, so that a better row is not a row with a little more to spend
    spent = Budget({name: env.shares(even.plan)[name] for name in budget.shares})
    env.set_budget(spent)
    if own is not env:
        own.set_budget(spent)
    log = EpisodeLog(out / EPISODES)
    found = _search(own, args.algo, args, log) if args.algo in SEARCHES else _learn(own, out, args, log, even)
    if args.resume:  # not before: a run whose checkpoint is damaged stays as it is
        open_run(out, run_config(args), overwrite=False)
    chosen = {"uniform": even}
    for name in args.baselines:
        if name != args.algo:
            chosen[name] = _baseline(env, name, args, log)
    name = "learned" if isinstance(found, LearningResult) else args.algo
    candidates = {"final": found.final, "best": found.best}
    if policy is not None:
        candidates["initial"] = run_episode(own, deterministic(policy.build(own)))
    chosen[name] = choose_on_validation(env, list(candidates.values()))
    if isinstance(found, LearningResult):
        with folder_written_whole(out / "policy") as folder:
            save_policy(found.model, own, folder, learned_on=options.learned_on(args))
    _write(out, env, task, args, chosen, candidates)


def _learn(
    env: GymEnv,
    out: Path,
    args: argparse.Namespace,
    log: EpisodeLog,
    uniform: EpisodeResult | None = None,
) -> LearningResult:
    return learn(
        env,
        algorithm=args.algo,
        episodes=args.episodes,
        seed=args.seed,
        hyperparameters=read_overrides(args.hyper),
        initial_policy=initial_policy(env, args),
        n_envs=args.n_envs,
        cluster=args.cluster,
        tensorboard_log=out / "tensorboard",
        progress=not args.quiet,
        log=log,
        uniform=uniform,
        checkpoint=out / "checkpoint",
        resume=args.resume,
    )


def _baseline(env: LayerPruningEnv, name: str, args: argparse.Namespace, log: EpisodeLog) -> EpisodeResult:
    """Return the plan of a baseline: an allocation, or what a search with as many evaluations found."""
    if name == "sensitivity":
        return EpisodeResult.from_dict(env.evaluate(env.allocation(name)))
    found = _search(env, name, args, log)
    return choose_on_validation(env, [found.final, found.best])


def _search(env: LayerPruningEnv, name: str, args: argparse.Namespace, log: EpisodeLog) -> Any:
    log.take_up(env, name, 0)
    envs = vectorized(env, n_envs=args.n_envs, cluster=args.cluster)
    try:
        return search(
            envs,
            name,
            gated=env.gated,
            episodes=args.episodes,
            seed=args.seed,
            progress=not args.quiet,
            on_episode=partial(log.append, name),
        )
    finally:
        envs.close()


def _write(
    out: Path,
    env: LayerPruningEnv,
    task: Task,
    args: argparse.Namespace,
    chosen: Mapping[str, EpisodeResult],
    candidates: Mapping[str, EpisodeResult],
) -> None:
    plans = {
        "dense": PruningPlan(),
        **{name: PruningPlan.from_dict(one.plan) for name, one in chosen.items()},
    }
    rows = measure_rows(env.network, plans, task.test_metric)
    name = list(chosen)[-1]
    plans[name].save(out / "plan.json")
    save_compressed(
        out / "compressed",
        rows.compressed[name],
        manifest_of(task, args, plans[name], rows.evaluations[name]),
    )
    facts = env.group_summary()
    predicted = predicted_and_measured(env.network, rows, name, plans[name], task.budget)
    even, found = (env.shares(chosen[row].plan) for row in ("uniform", name))
    latency = found["latency"] / even["latency"] if predicted else None
    record = {
        "rows": {row: one.to_dict() for row, one in rows.evaluations.items()},
        "gated_groups": rows.gated,
        **predicted,
        "verdict": verdict(rows.evaluations, name, latency=latency),
        f"{name}_is": next(CANDIDATES[key] for key, one in candidates.items() if one is chosen[name]),
        "candidates": {
            name: {**one.to_dict(), "validation": env.validate(one.plan)} for name, one in candidates.items()
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
