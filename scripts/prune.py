"""Carry out a plan, a learned policy, or an even allocation; write the compressed network."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from prunegym.agents.learning.policies import action_mode
from prunegym.agents.reuse import apply_policy
from prunegym.envs import Task
from prunegym.pruning.evaluation.comparison import measure_rows
from prunegym.pruning.files.plain_data import write_json
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.storage.compressed import save_compressed
from prunegym.scripts.building import build_env, build_network, build_task, measured_on
from prunegym.scripts.cli import run_verb
from prunegym.scripts.latency import predicted_and_measured
from prunegym.scripts.options.prune import PruneConfig, parse
from prunegym.scripts.run_folder import METRICS, check_empty, check_source, claimed, manifest_of, open_run
from prunegym.scripts.tables import show


def run(argv: Sequence[str]) -> None:
    """Run the verb with its command line."""
    config = parse(argv)
    output, out = config.output, config.output.folder
    with claimed(out):
        check_empty(out, overwrite=output.overwrite)
        for source in filter(None, (config.plan, config.policy)):
            check_source(source, out)
        given = CompressionPlan.load(config.plan) if config.plan else None
        torch.manual_seed(config.task.seed)
        task = build_task(config.task, config.budget)
        network, plan = _decide(config, task, given)
        network.space.levels(plan)  # a plan that does not fit is refused before the work begins
        rows = measure_rows(network, {"dense": CompressionPlan(), "pruned": plan}, task.test_metric)
        open_run(out, output.flags, overwrite=output.overwrite)
        plan.save(out / "plan.json")
        manifest = manifest_of(task, config.task.data, plan, rows.evaluations["pruned"])
        save_compressed(out / "compressed", rows.compressed["pruned"], manifest)
        record = {
            "rows": {name: row.to_dict() for name, row in rows.evaluations.items()},
            "gated_groups": rows.gated,
            **predicted_and_measured(network, rows, "pruned", plan, task.budget),
        }
        write_json(out / METRICS, record)
        show(record, f"{config.task.network.name}, {measured_on(config.task)}", as_json=output.as_json)


def _decide(
    config: PruneConfig, task: Task, given: CompressionPlan | None
) -> tuple[PrunableNetwork, CompressionPlan]:
    seed = config.task.seed
    if given is not None:
        return build_network(task, config.pruning, seed=seed), given
    if config.amounts:
        network = build_network(task, config.pruning, seed=seed)
        return network, network.space.even_plan(config.amounts)
    actions = action_mode(config.policy) if config.policy else "centred"
    env = build_env(task, config.task, config.pruning, actions=actions)
    if config.policy is None:
        return env.problem.network, CompressionPlan(env.problem.allocation(config.allocation))
    decided = apply_policy(env, config.policy, samples=config.samples)
    return env.problem.network, CompressionPlan(decided.plan)


if __name__ == "__main__":
    sys.exit(run_verb("prune"))
