"""What `train --per-input` refuses before it begins."""

from __future__ import annotations

import argparse

from prunegym.envs import ALLOCATIONS, Budget, BudgetRange, Limits, evenly_gated
from prunegym.envs.budget_projection import BudgetProjection, rounded_up
from prunegym.pruning.apply import Compressed
from prunegym.pruning.cost import widths_plan
from prunegym.pruning.errors import ImpossibleBudgetError, PlanError
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.plan import PruningPlan
from prunegym.scripts import options
from prunegym.scripts.per_input import PerInputJob


def share_of(args: argparse.Namespace, budget: Budget | BudgetRange) -> float:
    """Return the share of the multiply-adds that --budget leaves.

    Raises:
        UsageError: it is another budget, or a flag makes no sense beside --per-input.
    """
    if not isinstance(budget, Budget) or set(budget.shares) != {"macs"}:
        raise options.UsageError(
            "--per-input keeps to multiply-adds on average; give one --budget macs=SHARE"
        )
    if args.plan and args.static_ratio:
        raise options.UsageError("--plan holds the static ratios; leave out --static-ratio")
    other = [name for name in ("also", "init_policy", "first_images", "dense_reward") if getattr(args, name)]
    if other or args.algo != "ppo" or args.n_envs != 1:
        flag = other[0].replace("_", "-") if other else "algo" if args.algo != "ppo" else "n-envs"
        raise options.UsageError(f"--per-input learns by PPO on batches of inputs; leave out --{flag}")
    return budget.shares["macs"]


def plan_to_depart_from(
    network: PrunableNetwork, args: argparse.Namespace, share: float, given: PruningPlan | None
) -> PruningPlan:
    """Return the plan of --plan, else even ratios within a budget.

    Raises:
        PlanError: a runtime ratio is above the largest, or no group takes a gate.
        BudgetError: the largest ratios are not in [0, 1).
        ImpossibleBudgetError: the largest runtime ratio is not enough.
    """
    limits = Limits(static=args.max_static_ratio, runtime=args.max_runtime_ratio)
    if given is None:
        return evenly_gated(network, share, static_ratio=args.static_ratio, largest=limits.runtime)
    for name, decision in given.decisions.items():
        if decision.runtime_ratio > limits.runtime:
            raise PlanError(
                f"group {name!r}: a runtime_ratio of {decision.runtime_ratio:g} is above the largest, "
                f"{limits.runtime:g}; raise --max-runtime-ratio"
            )
    return given


def within_reach(job: PerInputJob, fixed: Compressed, share: float, largest: float) -> float:
    """Return the share of the multiply-adds that inputs are to cost: no more than fixed ratios use.

    So that a better row is not a row with a little more to spend.

    Raises:
        PlanError: the plan skips nothing, so that there is nothing to decide.
        ImpossibleBudgetError: inputs that skip all they may, and pay for the policy, are above `share`.
    """
    if not fixed.gates:
        raise PlanError(
            "the plan skips nothing at run time, so there is nothing to decide for each input; "
            "give a smaller --budget or --static-ratio, or a --plan with runtime ratios"
        )
    least = job.least_share(fixed, largest)
    if least > share:
        raise ImpossibleBudgetError(
            f"macs={share:g} cannot be met: the smallest is {rounded_up(least)}, with runtime "
            f"ratios of {largest:g} at every gate of the plan; raise one of them, or the budget"
        )
    cost = job.network.cost
    return min(share, max(least, cost.macs(fixed.widths) / cost.macs(cost.dense)))


def static_plan(network: PrunableNetwork, share: float, *, largest: float) -> PruningPlan:
    """Return the uniform plan without gates within a share of the multiply-adds.

    Raises:
        ImpossibleBudgetError: the largest static ratio is not enough.
    """
    limits = Limits(static=largest, runtime=0.0)
    projection = BudgetProjection(
        network.cost, Budget({"macs": share}), limits, round_to=network.method.round_to
    )
    return widths_plan(network.graph, ALLOCATIONS["uniform"](network, projection))
