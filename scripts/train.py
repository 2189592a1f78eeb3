"""Learn a pruning policy for a network; write policy, plan, compressed network, metrics and curves."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from agents import (
    ALGORITHMS,
    EpisodeResult,
    LearningResult,
    choose_on_validation,
    learn,
    random_search,
    run_episode,
    save_policy,
    uniform,
)
from envs import Budget, LayerPruningEnv, Task
from pruning.evaluation import Evaluation
from pruning.export import folder_written_whole, save_compressed
from pruning.files import write_json
from pruning.measuring import measure_rows
from pruning.plan import PruningPlan
from scripts import options
from scripts.cli import run_verb
from scripts.records import METRICS, check_out, manifest_of, open_run, run_config, show


def build_parser() -> options.Parser:
    """Return the parser of this verb."""
    parser = options.Parser("train", __doc__ or "")
    options.add_network_flags(parser)
    options.add_budget_flag(parser)
    options.add_pruning_flags(parser)
    parser.add_argument("--algo", default="ppo", metavar="NAME", help=f"one of: {', '.join(ALGORITHMS)}")
    parser.add_argument(
        "--episodes", type=options.positive, default=200, metavar="N", help="plans to evaluate (200)"
    )
    options.add_output_flags(parser, resume=True)
    return parser


def run(argv: Sequence[str]) -> None:
    """Carry the verb out."""
    args = build_parser().parse(argv)
    ALGORITHMS[args.algo]  # unknown names are refused before the work begins
    options.method_of(args)  # so is an unknown method
    budget = options.budget_of(args)
    out = args.out or Path("runs") / args.model.replace("/", "-")
    check_out(out, args, may_differ=["episodes"])
    torch.manual_seed(args.seed)
    task = options.task_of(args, budget)
    env = options.env_of(task, args)
    if not args.resume:
        open_run(out, run_config(args), overwrite=args.overwrite)
    even = run_episode(env, uniform)
    # no one may use more than uniform does, so that a better row is not a row with a little more to spend
    env.set_budget(Budget({name: getattr(even, name) for name in budget.shares}))
    learned = _learn(env, out, args)
    if args.resume:  # not before: a run whose checkpoint is damaged stays as it is
        open_run(out, run_config(args), overwrite=False)
    chosen = {
        "uniform": even,
        "random": choose_on_validation(env, _random(env, args)[:2]),
        "learned": choose_on_validation(env, [learned.final, learned.best]),
    }
    _write(out, env, task, args, learned, chosen)


def _learn(env: LayerPruningEnv, out: Path, args: argparse.Namespace) -> LearningResult:
    return learn(
        env,
        algorithm=args.algo,
        episodes=args.episodes,
        seed=args.seed,
        tensorboard_log=out / "tensorboard",
        progress=not args.quiet,
        checkpoint=out / "checkpoint",
        resume=args.resume,
    )


def _random(env: LayerPruningEnv, args: argparse.Namespace) -> list[EpisodeResult]:
    return random_search(env, episodes=args.episodes, seed=args.seed, progress=not args.quiet)


def _write(
    out: Path,
    env: LayerPruningEnv,
    task: Task,
    args: argparse.Namespace,
    learned: LearningResult,
    chosen: dict[str, EpisodeResult],
) -> None:
    plans = {
        "dense": PruningPlan(),
        **{name: PruningPlan.from_dict(one.plan) for name, one in chosen.items()},
    }
    rows = measure_rows(env.network, plans, task.splits.test)
    with folder_written_whole(out / "policy") as folder:
        save_policy(learned.model, env, folder)
    plans["learned"].save(out / "plan.json")
    manifest = manifest_of(task, args, plans["learned"], rows.evaluations["learned"])
    save_compressed(out / "compressed", rows.compressed["learned"], manifest)
    record = {
        "rows": {name: row.to_dict() for name, row in rows.evaluations.items()},
        "gated_groups": rows.gated,
        "verdict": verdict(rows.evaluations),
        "learned_is": "final policy" if chosen["learned"] is learned.final else "best plan seen",
        "candidates": {
            name: {**one.to_dict(), "validation": env.validate(one.plan)}
            for name, one in (("final", learned.final), ("best", learned.best))
        },
    }
    write_json(out / METRICS, record)
    title = (
        f"{args.model} at {' '.join(args.budget)}, {args.episodes} evaluations each, on "
        f"{options.judged_on(args)}"
    )
    show(record, title, as_json=args.json)
    print(
        f"written to {out}; watch the curves with: tensorboard --logdir {out / 'tensorboard'}",
        file=sys.stderr,
    )


def verdict(rows: Mapping[str, Evaluation]) -> str:
    """Say in a line whether the learned plan beats the uniform one at no more MACs."""
    learned, even = rows["learned"], rows["uniform"]
    points = 100 * (_right(learned) - _right(even))
    if points > 0 and learned.macs <= even.macs:
        return f"learned beats uniform by {points:.1f} points at no more MACs"
    spent = learned.macs / even.macs
    return f"learned does NOT beat uniform on this seed: {points:+.1f} points at {spent:.3f} times its MACs"


def _right(row: Evaluation) -> float:
    """Return the accuracy, or the agreement with the dense network where there are no labels."""
    found = row.agreement if row.accuracy is None else row.accuracy
    assert found is not None  # one of them is always measured
    return found


if __name__ == "__main__":
    sys.exit(run_verb("train"))
