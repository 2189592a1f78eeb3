"""Learn a pruning policy; write policy, plan, compressed network, metrics, pictures and curves."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from prunegym.agents import ALGORITHMS, EpisodeLog, save_policy
from prunegym.agents.comparison import Comparison, ComparisonConfig, compare
from prunegym.agents.episode_log import EPISODES
from prunegym.agents.interface import GymEnv
from prunegym.agents.learning.training import LearningConfig, Recording, learn
from prunegym.agents.pictures import reasons
from prunegym.agents.reuse import load_initial_policy, plans_within, shared_env
from prunegym.agents.vector.ray_connection import connected
from prunegym.envs import Budget, BudgetRange, LayerPruningEnv, Task
from prunegym.pruning.evaluation.comparison import measure_rows
from prunegym.pruning.evaluation.evaluate import Evaluation
from prunegym.pruning.files.plain_data import write_json
from prunegym.pruning.files.writing import folder_written_whole
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.storage.compressed import save_compressed
from prunegym.scripts.building import build_env, build_task, measured_on
from prunegym.scripts.cli import run_verb
from prunegym.scripts.latency import predicted_and_measured
from prunegym.scripts.options.learning import LearningOptions
from prunegym.scripts.options.train import TrainConfig, parse
from prunegym.scripts.report import write_pictures
from prunegym.scripts.run_folder import (
    METRICS,
    begin_run,
    check_out,
    check_source,
    claimed,
    continue_run,
    manifest_of,
)
from prunegym.scripts.tables import print_aside, show

MAY_DIFFER = ("episodes", "baselines")  # when a run is resumed
CANDIDATES = {
    "final": "final policy",
    "best": "best plan seen",
    "initial": "initial policy, unchanged",  # at one more evaluation
}


def run(argv: Sequence[str]) -> None:
    """Run the verb with its command line."""
    config = parse(argv)
    learning, out = config.learning, config.output.folder
    with ExitStack() as stack:
        stack.enter_context(claimed(out))
        check_out(config.output, may_differ=MAY_DIFFER)
        if learning.initial_policy is not None:
            check_source(learning.initial_policy, out)
        torch.manual_seed(config.task.seed)
        if learning.cluster:  # before the work begins, and once for agent and baselines
            stack.enter_context(connected(learning.cluster, n_envs=learning.n_envs))
        if learning.also or isinstance(config.budget, BudgetRange):
            _train_for_reuse(config)
        else:
            _train_for_one(config, config.budget)


def _train_for_one(config: TrainConfig, budget: Budget) -> None:
    """Find a plan for one network within one budget."""
    learning, out = config.learning, config.output.folder
    task = build_task(config.task, budget)
    env = acting_env = build_env(task, config.task, config.pruning, **learning.reward_settings)
    if learning.algorithm in ALGORITHMS and ALGORITHMS[learning.algorithm].actions != env.action_mode:
        acting_env = LayerPruningEnv(
            env.problem,
            actions=ALGORITHMS[learning.algorithm].actions,
            dense_reward=learning.dense_reward,
        )
    compared = ComparisonConfig(
        algorithm=learning.algorithm,
        episodes=learning.episodes,
        baselines=learning.baselines,
        seed=config.task.seed,
        learning=_learning_config(acting_env, learning),
    )
    begin_run(config.output)
    found = compare(
        env,
        compared,
        acting_env=acting_env,
        out=out,
        resume=config.output.resume,
        progress=config.task.progress,
        on_learned=partial(continue_run, config.output),
    )
    if found.learned is not None:
        with folder_written_whole(out / "policy") as folder:
            save_policy(found.learned.model, acting_env, folder, learned_on=_learned_on(config))
    _write(config, env, task, found)


def _write(config: TrainConfig, env: LayerPruningEnv, task: Task, found: Comparison) -> None:
    out, name, chosen = config.output.folder, found.name, found.chosen
    plans = {
        "dense": CompressionPlan(),
        **{row: CompressionPlan(one.plan) for row, one in chosen.items()},
    }
    rows = measure_rows(env.problem.network, plans, task.test_metric)
    plans[name].save(out / "plan.json")
    manifest = manifest_of(task, config.task.data, plans[name], rows.evaluations[name])
    save_compressed(out / "compressed", rows.compressed[name], manifest)
    summary = env.problem.site_summary()
    predicted = predicted_and_measured(env.problem.network, rows, name, plans[name], task.budget)
    even, mine = (env.problem.shares(chosen[row].plan) for row in ("uniform", name))
    latency = mine["latency"] / even["latency"] if predicted else None
    record = {
        "rows": {row: one.to_dict() for row, one in rows.evaluations.items()},
        "gated_groups": rows.gated,
        **predicted,
        "verdict": verdict(rows.evaluations, name, latency=latency),
        f"{name}_is": CANDIDATES[found.winner],
        "candidates": {
            key: {**one.to_dict(), "validation": env.problem.validate(one.plan)}
            for key, one in found.candidates.items()
        },
        "plans": {row: one.plan for row, one in chosen.items()},
        "sites": summary,
        "reasons": reasons(summary, chosen["uniform"].plan, chosen[name].plan),
    }
    write_json(out / METRICS, record)
    write_pictures(out)
    title = (
        f"{config.task.network.name} at {' '.join(config.asked)}, {config.learning.episodes} evaluations "
        f"each, {measured_on(config.task)}"
    )
    show(record, title, as_json=config.output.as_json)
    curves = out / "tensorboard"
    watch = f"; watch the curves with: tensorboard --logdir {curves}" if curves.exists() else ""
    print_aside(f"written to {out}{watch}")


def _train_for_reuse(config: TrainConfig) -> None:
    """Learn one policy on several networks, or for a range of budgets; write it and what it does on each."""
    learning, out = config.learning, config.output.folder
    weights = {config.task.network.name: config.task.network.weights, **learning.also}
    tasks = {}
    for name, file in weights.items():
        network = replace(config.task.network, name=name, weights=file)
        tasks[name] = build_task(replace(config.task, network=network), config.budget)
    settings = {"actions": ALGORITHMS[learning.algorithm].actions, **learning.reward_settings}
    envs = {name: build_env(task, config.task, config.pruning, **settings) for name, task in tasks.items()}
    env = shared_env(envs)
    how = _learning_config(env, learning)
    begin_run(config.output)
    learned = learn(
        env,
        algorithm=learning.algorithm,
        episodes=learning.episodes,
        seed=config.task.seed,
        config=how,
        recording=Recording(
            tensorboard=out / "tensorboard",
            checkpoint=out / "checkpoint",
            resume=config.output.resume,
            log=EpisodeLog(out / EPISODES),
            progress=config.task.progress,
        ),
    )
    continue_run(config.output)
    with folder_written_whole(out / "policy") as folder:
        save_policy(learned.model, env, folder, learned_on=_learned_on(config))
    rows: dict[str, Evaluation] = {}
    for name, task in tasks.items():
        plans = {"dense": CompressionPlan(), **plans_within(envs[name], task.budget, learned.model)}
        named = {f"{name} {row}": plan for row, plan in plans.items()}
        rows |= measure_rows(envs[name].problem.network, named, task.test_metric).evaluations
    record = {
        "rows": {name: row.to_dict() for name, row in rows.items()},
        "gated_groups": {},
        "verdict": _reuse_verdict(rows),
    }
    write_json(out / METRICS, record)
    write_pictures(out)
    title = f"one policy, {learning.episodes} evaluations, {measured_on(config.task)}"
    show(record, title, as_json=config.output.as_json)
    print_aside(f"written to {out}; apply it with: prunegym prune --policy {out / 'policy'} ...")


def _learning_config(env: GymEnv, learning: LearningOptions) -> LearningConfig:
    """Return how a policy is learned; a policy to continue from that does not fit is refused here."""
    policy = None
    if learning.initial_policy is not None:
        policy = load_initial_policy(
            learning.initial_policy,
            env,
            algorithm=learning.algorithm,
            hyperparameters=learning.hyperparameters,
        )
    return LearningConfig(
        hyperparameters=learning.hyperparameters,
        initial_policy=policy,
        n_envs=learning.n_envs,
        cluster=learning.cluster,
    )


def _learned_on(config: TrainConfig) -> dict[str, Any]:
    """Return where a policy comes from, plain data."""
    return {
        "networks": [config.task.network.name, *config.learning.also],
        "budget": list(config.asked),
        "episodes": config.learning.episodes,
        "seed": config.task.seed,
    }


def _reuse_verdict(rows: Mapping[str, Evaluation]) -> str:
    gains = []
    for name, row in rows.items():
        if name.endswith(" learned"):
            gain = row.quality - rows[name.removesuffix("learned") + "uniform"].quality
            gains.append(f"{100 * gain:+.1f}" if row.score is None else f"{gain:+.4g}")
    return f"learned against uniform{', in points' if row.score is None else ''}: {', '.join(gains)}"


def verdict(rows: Mapping[str, Evaluation], name: str, *, latency: float | None = None) -> str:
    """Return one line on whether the chosen plan beats the uniform one at no more MACs.

    Args:
        rows: evaluations by row, "uniform" among them.
        name: the row of the chosen plan.
        latency: predicted latency as a multiple of the uniform plan's, where the budget limits latency; it
            is then compared instead of MACs.
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
