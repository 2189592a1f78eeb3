"""Time the environment on pretrained CIFAR-10 ResNets: steps and episodes per second, and where time goes."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from prunegym.agents.per_input.rounds import PerInputJob
from prunegym.envs import LayerPruningEnv, make_env
from prunegym.scripts.benchmarks.assets import cifar_task
from prunegym.scripts.benchmarks.results import progress_bar
from prunegym.scripts.options.benchmark import BenchmarkConfig
from prunegym.scripts.tables import print_table

NETWORKS = ("cifar_resnet20", "cifar_resnet56")
EPISODES = 20
BATCHES = 5  # of inputs


def measure(config: BenchmarkConfig) -> dict[str, Any]:
    """Return one row per network."""
    rows = {}
    for name in config.networks or NETWORKS:
        task = cifar_task(name, config)
        start = time.perf_counter()
        env = make_env(task)
        setup = time.perf_counter() - start
        rows[name] = {
            "groups": len(env.site_names),
            "setup_s": setup,
            **time_episodes(env, config),
            "input_steps_per_s": time_inputs(PerInputJob(task, env.problem.network), config.seed),
        }
    return rows


def time_inputs(job: PerInputJob, seed: int) -> float:
    """Return the steps per second of the environment of inputs; a step decides about one gate for one input.

    Gates wherever there can be some, with half of the units; random actions, after a warm-up batch.
    """
    compressed = job.apply(job.network.space.even_plan({"gates": 0.5}))
    job.attach_policy_(compressed, max_runtime_ratio=0.9)
    env = job.environment(compressed, share=0.5)
    rng, gates = np.random.default_rng(seed), len(env.gate_names)
    env.reset(seed=seed)
    start = 0.0
    for step in range((1 + BATCHES) * gates):
        if step == gates:
            start = time.perf_counter()
        env.step(rng.uniform(-1, 1, size=(env.num_envs, 1)).astype(np.float32))
    return BATCHES * gates * env.num_envs / (time.perf_counter() - start)


def time_episodes(env: LayerPruningEnv, config: BenchmarkConfig) -> dict[str, float]:
    """Time episodes of random actions, no two alike, after a warm-up episode.

    Returns:
        step_ms: median of the steps that only decide; steps_per_s: its inverse; episodes_per_s;
        evaluation_share: share of an episode's time that its last step spends on evaluation.
    """
    rng = np.random.default_rng(config.seed)
    _episode(env, rng)
    deciding: list[float] = []
    evaluating: list[float] = []
    count = config.episodes or EPISODES
    for _ in progress_bar(range(count), shown=config.progress, unit="episode", leave=False):
        *steps, last = _episode(env, rng)
        deciding += steps
        evaluating.append(last - statistics.median(steps))
    step, evaluation = statistics.median(deciding), statistics.median(evaluating)
    episode = step * len(env.site_names) + evaluation
    return {
        "step_ms": 1e3 * step,
        "steps_per_s": 1 / step,
        "episodes_per_s": 1 / episode,
        "evaluation_share": evaluation / episode,
    }


def _episode(env: LayerPruningEnv, rng: np.random.Generator) -> list[float]:
    """Return the seconds of each step."""
    env.reset()
    seconds, terminated = [], False
    while not terminated:
        action = rng.uniform(-1, 1, size=2).astype(np.float32)
        start = time.perf_counter()
        _, _, terminated, _, _ = env.step(action)
        seconds.append(time.perf_counter() - start)
    return seconds


def show(record: dict[str, dict[str, Any]]) -> None:
    """Print the rows as a table."""
    headings = ("network", "groups", "set-up", "a step", "steps/s", "episodes/s", "in evaluation")
    rows = [
        (
            name,
            str(row["groups"]),
            f"{row['setup_s']:.1f} s",
            f"{row['step_ms']:.2f} ms",
            f"{row['steps_per_s']:.0f}",
            f"{row['episodes_per_s']:.2f}",
            f"{row['evaluation_share']:.1%}",
            f"{row['input_steps_per_s']:.0f}",
        )
        for name, row in record.items()
    ]
    print_table("environment, half the MACs, 512 reward images", (*headings, "inputs: steps/s"), rows)
