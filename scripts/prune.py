"""Carry out a plan, a learned policy, or an even allocation; write the compressed network."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from prunegym.agents.learning.policies import action_mode
from prunegym.agents.reuse import apply_policy, policy_folder
from prunegym.envs import ALLOCATIONS, LayerPruningEnv, Task, even_plan
from prunegym.pruning.cost import plan_widths
from prunegym.pruning.evaluation.comparison import measure_rows
from prunegym.pruning.files import write_json
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.plan import PruningPlan
from prunegym.pruning.storage.compressed import save_compressed
from prunegym.scripts import options
from prunegym.scripts.cli import run_verb
from prunegym.scripts.latency import predicted_and_measured
from prunegym.scripts.run_folder import (
    METRICS,
    check_empty,
    check_source,
    claimed,
    manifest_of,
    open_run,
    show,
)


def build_parser() -> options.Parser:
    """Return the parser of this verb."""
    parser = options.Parser("prune", __doc__ or "")
    options.add_network_flags(parser)
    options.add_budget_flag(parser)
    options.add_pruning_flags(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--plan", type=Path, metavar="FILE", help="a plan.json")
    how.add_argument(
        "--policy",
        metavar="DIR",
        help="within --budget: a policy that train wrote, or builtin, the one that ships",
    )
    how.add_argument(
        "--allocation", choices=list(ALLOCATIONS), default="uniform", help="within --budget (default uniform)"
    )
    parser.add_argument(
        "--samples",
        type=options.positive,
        metavar="K",
        help="of the policy, beside its first choice; the best on validation is taken",
    )
    parser.add_argument("--static-ratio", type=float, metavar="R", help="of every group, instead of a budget")
    parser.add_argument(
        "--runtime-ratio", type=float, metavar="R", help="of every group that takes a gate, likewise"
    )
    options.add_output_flags(parser)
    return parser


def run(argv: Sequence[str]) -> None:
    """Carry the verb out."""
    args = build_parser().parse(argv)
    by_ratio = args.static_ratio is not None or args.runtime_ratio is not None
    if by_ratio and (args.plan or args.policy):
        raise options.UsageError(
            "--static-ratio and --runtime-ratio replace --plan and --policy; give one of them"
        )
    if args.out is None:
        raise options.UsageError("name the folder for the results with --out")
    with claimed(args.out):
        _prune(args, by_ratio=by_ratio)


def _prune(args: argparse.Namespace, *, by_ratio: bool) -> None:
    check_empty(args.out, overwrite=args.overwrite)
    if args.samples and not args.policy:
        raise options.UsageError("--samples goes with --policy")
    policy = policy_folder(args.policy) if args.policy else None
    for source in filter(None, (args.plan, policy)):
        check_source(source, args.out)
    budget = options.one_budget_of(args)
    options.method_of(args)  # unknown names are refused before the work begins
    loaded = PruningPlan.load(args.plan) if args.plan else None
    torch.manual_seed(args.seed)
    task = options.task_of(args, budget)
    if loaded is None and not by_ratio:
        env = options.env_of(task, args, actions=action_mode(policy) if policy else "centred")
        network, plan = env.network, _decide(env, policy, args)
    else:
        network = options.network_of(task, args)
        plan = loaded or even_plan(network.graph, args.static_ratio or 0.0, args.runtime_ratio or 0.0)
    plan_widths(network.graph, plan)  # a plan that does not fit is refused before the work begins
    _write(network, plan, task, args)


def _decide(env: LayerPruningEnv, policy: Path | None, args: argparse.Namespace) -> PruningPlan:
    if policy is None:
        return PruningPlan.from_dict(env.allocation(args.allocation))
    return PruningPlan.from_dict(apply_policy(env, policy, samples=args.samples or 0).plan)


def _write(network: PrunableNetwork, plan: PruningPlan, task: Task, args: argparse.Namespace) -> None:
    rows = measure_rows(network, {"dense": PruningPlan(), "pruned": plan}, task.test_metric)
    open_run(args.out, options.plain(args), overwrite=args.overwrite)
    plan.save(args.out / "plan.json")
    manifest = manifest_of(task, args, plan, rows.evaluations["pruned"])
    save_compressed(args.out / "compressed", rows.compressed["pruned"], manifest)
    record = {
        "rows": {name: row.to_dict() for name, row in rows.evaluations.items()},
        "gated_groups": rows.gated,
        **predicted_and_measured(network, rows, "pruned", plan, task.budget),
    }
    write_json(args.out / METRICS, record)
    show(record, f"{args.model}, {options.judged_on(args)}", as_json=args.json)


if __name__ == "__main__":
    sys.exit(run_verb("prune"))
