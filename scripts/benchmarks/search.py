"""Is learning better than plain search with as many evaluations? Every method on pretrained ResNets."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from prunegym.agents import (
    ALGORITHMS,
    BUILTIN,
    DEFAULT_ALGORITHM,
    EpisodeResult,
    choose_on_validation,
    learn,
    load_policy,
)
from prunegym.agents.learning.training import LearningConfig, Recording
from prunegym.agents.search import SEARCHES, search
from prunegym.envs import Budget, LayerPruningEnv
from prunegym.scripts.benchmarks.assets import comparison_env
from prunegym.scripts.benchmarks.figures import ahead_by, mean_and_spread, right_answers
from prunegym.scripts.benchmarks.results import begun, run_side_by_side
from prunegym.scripts.options.benchmark import BenchmarkConfig
from prunegym.scripts.options.parser import UsageError
from prunegym.scripts.tables import print_table

MARKS = (100, 200, 400)  # evaluations
ALL_IMAGES = sys.maxsize  # to draw
CONTINUED = f"{DEFAULT_ALGORITHM} from builtin"  # the policy that ships with the package
ALL = ("uniform", "sensitivity", *SEARCHES, "amc", "ddpg", "td3", "sac", "ppo", DEFAULT_ALGORITHM, CONTINUED)
FEW = ("uniform", "random", "cma-es", DEFAULT_ALGORITHM)


class Cell(NamedTuple):
    """A network and a budget, the methods to compare there and the seeds to repeat them with."""

    network: str
    only: tuple[str, ...]
    budget: float  # share of the MACs that may remain
    methods: Sequence[str]
    seeds: int
    labelled: bool = True  # else rewarded, validated and calibrated without data


INNER = ("*.conv1",)
CELLS: Mapping[str, Cell] = {
    "ResNet-20, block-inner, half": Cell("cifar_resnet20", INNER, 0.5, ALL, 5),
    "ResNet-20, whole, half": Cell("cifar_resnet20", (), 0.5, ALL, 5),
    "ResNet-56, block-inner, half": Cell("cifar_resnet56", INNER, 0.5, FEW, 3),
    "ResNet-20, block-inner, 35 %": Cell("cifar_resnet20", INNER, 0.35, FEW, 3),
    "ResNet-20, block-inner, half, without data": Cell("cifar_resnet20", INNER, 0.5, FEW, 3, False),
}


def measure(config: BenchmarkConfig) -> dict[str, Any]:
    """Return, by cell, method and seed, what was found; runs that `--out` holds already are not repeated."""
    networks = {what.network for what in CELLS.values()}
    if not set(config.networks or ()) <= networks:
        raise UsageError(f"--networks are those of its cells here: {', '.join(sorted(networks))}")
    record = begun(config, episodes=config.episodes or MARKS[-1])
    jobs = [
        (cell, method, str(seed))
        for cell, what in CELLS.items()
        if not config.networks or what.network in config.networks
        for seed in range(what.seeds)
        for method in what.methods
    ]
    return run_side_by_side(record, jobs, partial(_run, config), progress=config.progress)


def _run(config: BenchmarkConfig, cell: str, method: str, seed: str) -> dict[str, Any]:
    """Return the plans that a method found, as rows of accuracies, rewards and which test images were right.

    Rewards are on all images that plans are scored on a draw of.
    """
    what, start = CELLS[cell], time.perf_counter()
    make = partial(
        comparison_env,
        what.network,
        config,
        budget=Budget({"macs": what.budget}),
        only=what.only,
        seed=int(seed),
        labelled=what.labelled,
    )
    env, test = make(actions=ALGORITHMS[method].actions if method in ALGORITHMS else "centred")
    scoring_env, _ = make(drawn_images=ALL_IMAGES)  # by more than one draw
    episodes = config.episodes or MARKS[-1]
    answers = _answers(env, method, int(seed), episodes)
    rows = {
        name: {
            **right_answers(env.problem.apply(result.plan), test),
            "reward": scoring_env.problem.evaluate(result.plan)["reward"]["total"],
            "macs": result.shares["macs"],
        }
        for name, result in answers.items()
    }
    return {"rows": rows, "seconds": time.perf_counter() - start}


def _answers(env: LayerPruningEnv, method: str, seed: int, episodes: int) -> dict[str, EpisodeResult]:
    """Return the best plan seen after each mark, the method's own `answer`, and what `train` would take."""
    if method in ("uniform", "sensitivity"):
        return {"answer": EpisodeResult.from_dict(env.problem.evaluate(env.problem.allocation(method)))}
    if method in SEARCHES:
        found = search(env, method, admitted=env.admitted, episodes=episodes, seed=seed)
        seen, final = found.results, found.final
    else:
        # what an agent observes of the groups' loo_gain costs an evaluation each, and counts
        seen, spent = [], len(env.site_names)
        initial = load_policy(BUILTIN, env) if method == CONTINUED else None
        final = learn(
            env,
            algorithm=DEFAULT_ALGORITHM if method == CONTINUED else method,
            episodes=episodes - spent,
            seed=seed,
            config=LearningConfig(initial_policy=initial),
            recording=Recording(on_episode=seen.append),
        ).final

    def best(results: Sequence[EpisodeResult]) -> EpisodeResult:
        return max(results, key=lambda result: result.total)

    marks = {f"best of {mark}": best(seen[:mark]) for mark in MARKS if mark <= episodes}
    return {**marks, "answer": final, "chosen": choose_on_validation(env, [final, best(seen)])}


def show(record: Mapping[str, Any]) -> None:
    """Print a table per cell: accuracies in percent, and the answer's reward.

    The last column says how far the default agent's answers are ahead, in points (95 % bootstrap).
    """
    columns = [*(f"best of {mark}" for mark in MARKS), "answer", "chosen"]
    headings = ("method", "seeds", *columns, "reward", f"{DEFAULT_ALGORITHM} ahead by")
    for cell, methods in record.items():
        rows = []
        for method, runs in sorted(methods.items(), key=lambda item: ALL.index(item[0])):
            found = [run["rows"] for run in runs.values()]
            accuracies = [
                mean_and_spread(one[column]["accuracy"] for one in found if column in one)
                for column in columns
            ]
            reward = f"{np.mean([one['answer']['reward'] for one in found]):.3f}"
            rows.append([method, str(len(runs)), *accuracies, reward, _ahead(methods, method)])
        title = f"{cell}: test accuracy without fine-tuning, mean ± spread"
        print_table(title, headings, rows, pad_edge=False)


def _ahead(methods: Mapping[str, Any], method: str) -> str:
    """Return by how much the default agent's deterministic policy beats a method's answer."""
    seeds = sorted(set(methods.get(DEFAULT_ALGORITHM, {})) & set(methods[method]))
    if method == DEFAULT_ALGORITHM or not seeds:
        return "-"
    ours, theirs = (
        [methods[name][seed]["rows"]["answer"]["right"] for seed in seeds]
        for name in (DEFAULT_ALGORITHM, method)
    )
    return ahead_by(ours, theirs)
