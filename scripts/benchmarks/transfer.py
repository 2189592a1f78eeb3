"""Can a learned policy be reused? Learned on small ResNets, applied to a larger one, and trained on there."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from prunegym.agents import (
    EpisodeResult,
    choose_on_validation,
    deterministic,
    learn,
    load_policy,
    run_episode,
    save_mean_policy,
    save_policy,
)
from prunegym.agents.learning.training import LearningConfig
from prunegym.envs import Budget, BudgetRange, MultiNetworkEnv
from prunegym.pruning.files.writing import folder_written_whole
from prunegym.scripts.benchmarks.assets import comparison_env
from prunegym.scripts.benchmarks.figures import accuracy_on, mean_and_spread
from prunegym.scripts.benchmarks.results import begun, run_side_by_side
from prunegym.scripts.options.benchmark import BenchmarkConfig
from prunegym.scripts.tables import print_table

HALF = Budget({"macs": 0.5})
AROUND_HALF = BudgetRange(Budget({"macs": 0.4}), Budget({"macs": 0.6}))


class Source(NamedTuple):
    """The networks and budgets that a policy for reuse is learned on."""

    networks: Sequence[str]
    budget: Budget | BudgetRange = HALF


SOURCES: Mapping[str, Source] = {
    "ResNet-20": Source(("cifar_resnet20",)),
    "ResNet-20 and 32": Source(("cifar_resnet20", "cifar_resnet32")),
    "digits and ResNet-32": Source(("digits_resnet", "cifar_resnet32"), AROUND_HALF),
}
APPLIED = ("ResNet-20", "ResNet-20 and 32")  # alone
AVERAGED = ("ResNet-20", "digits and ResNet-32")  # of both seeds, for the policy that ships
SCOPES: Mapping[str, tuple[str, ...]] = {"block-inner": ("*.conv1",), "whole": ()}
TARGET = "cifar_resnet56"
EPISODES, SEEDS = 600, 2  # to learn a policy for reuse
FURTHER, SCRATCH = (20, 50, 100), (50, 100, 200)  # evaluations on the target
ZERO_SHOT = "0"
MEAN = "mean of four, which ships"


def measure(config: BenchmarkConfig) -> dict[str, Any]:
    """Return, by scope, origin of the policy, evaluations and seed, the accuracy on the target network."""
    record = begun(config, episodes=config.episodes or EPISODES)
    folder = config.out.with_suffix("") if config.out else Path(tempfile.mkdtemp())
    seeds = [str(seed) for seed in range(SEEDS)]
    jobs = [("policies", source, seed) for source in SOURCES for seed in seeds]
    run_side_by_side(record, jobs, partial(_learn_policy, config, folder), progress=config.progress)
    on_processor = replace(config, device="cpu")  # a GPU in use does not survive a fork
    _average(on_processor, folder, [folder / f"{source} {seed}" for source in AVERAGED for seed in seeds])
    steps = {
        "uniform": (ZERO_SHOT,),
        "scratch": SCRATCH,
        **{source: (ZERO_SHOT, *FURTHER) for source in APPLIED},
        MEAN: (ZERO_SHOT,),
    }
    runs = [
        (scope, origin, str(evaluations), seed)
        for scope in SCOPES
        for seed in seeds
        for origin, counts in steps.items()
        for evaluations in counts
    ]
    return run_side_by_side(record, runs, partial(_run, config, folder), progress=config.progress)


def _learn_policy(config: BenchmarkConfig, folder: Path, _: str, source: str, seed: str) -> dict[str, Any]:
    """Learn one policy on a source's networks, on inner channels and on all, and keep it in `folder`."""
    what = SOURCES[source]
    envs = {}
    for network in what.networks:
        for scope, only in SCOPES.items():
            made = comparison_env(network, config, budget=what.budget, only=only, seed=int(seed))
            envs[f"{network} {scope}"] = made[0]
    env = MultiNetworkEnv(envs)
    episodes = config.episodes or EPISODES
    found = learn(env, episodes=episodes, seed=int(seed))
    place = folder / f"{source} {seed}"
    place.parent.mkdir(parents=True, exist_ok=True)
    learned_on = {"networks": list(envs), "budget": [str(what.budget)], "episodes": episodes}
    with folder_written_whole(place) as partial_folder:
        save_policy(found.model, env, partial_folder, learned_on=learned_on)
    return {"episodes": found.episodes}


def _average(config: BenchmarkConfig, folder: Path, places: Sequence[Path]) -> None:
    """Keep the mean of the policies at `places` in `folder`; it is what lies in `agents/builtin`."""
    env, _ = comparison_env(TARGET, config, budget=HALF, seed=0)
    policies = [load_policy(place, env) for place in places]
    learned = [policy.description["learned_on"] for policy in policies]
    learned_on = {
        "networks": sorted({network for one in learned for network in one["networks"]}),
        "budget": sorted({budget for one in learned for budget in one["budget"]}),
        "episodes": sum(one["episodes"] for one in learned),
        "mean_of": len(policies),
    }
    with folder_written_whole(folder / MEAN) as partial_folder:
        save_mean_policy(policies, partial_folder, learned_on=learned_on)


def _run(
    config: BenchmarkConfig, folder: Path, scope: str, origin: str, evaluations: str, seed: str
) -> dict[str, Any]:
    """Return the test accuracy on the target after so many evaluations there."""
    env, test = comparison_env(TARGET, config, budget=HALF, only=SCOPES[scope], seed=int(seed))
    place = folder / (MEAN if origin == MEAN else f"{origin} {seed}")
    policy = load_policy(place, env) if origin in (*SOURCES, MEAN) else None
    candidates = []
    if origin == "uniform":
        candidates.append(EpisodeResult.from_dict(env.problem.evaluate(env.problem.allocation("uniform"))))
    if policy is not None:
        candidates.append(run_episode(env, deterministic(policy.build(env))))
    further = int(evaluations) - len(candidates)
    if further > 0:
        found = learn(env, episodes=further, seed=int(seed), config=LearningConfig(initial_policy=policy))
        candidates += [found.final, found.best]
    chosen = choose_on_validation(env, candidates)
    right = accuracy_on(env.problem.apply(chosen.plan), test)
    return {"accuracy": right, "reward": chosen.total, "macs": chosen.shares["macs"]}


def show(record: Mapping[str, Any]) -> None:
    """Print a table per scope: accuracy in percent after so many evaluations on the target."""
    for scope in SCOPES:
        origins = record.get(scope, {})
        columns = sorted({int(count) for counts in origins.values() for count in counts})
        rows = []
        for origin, counts in origins.items():
            runs = [counts.get(str(column), {}).values() for column in columns]
            rows.append([origin, *(mean_and_spread(run["accuracy"] for run in some) for some in runs)])
        print_table(
            f"{TARGET}, {scope}, half the MACs: test accuracy", ("policy from", *map(str, columns)), rows
        )
