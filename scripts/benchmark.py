"""Measure this installation: `benchmark env` times the environment on pretrained CIFAR-10 ResNets."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from tqdm import tqdm

from envs import Budget, LayerPruningEnv, load_task, task_env
from scripts import options
from scripts.cli import run_verb
from scripts.records import console

WEIGHTS = {"cifar_resnet20": "resnet20-12fca82f.th", "cifar_resnet56": "resnet56-4bfd9763.th"}


def build_parser() -> options.Parser:
    """Return the parser of this verb."""
    parser = options.Parser("benchmark", __doc__ or "")
    parser.add_argument(
        "name", choices=("env",), help="env: steps and episodes per second, and where the time goes"
    )
    parser.add_argument(
        "--assets",
        type=Path,
        default=Path(os.environ.get("SECATEUR_DATA", "../shared/data")),
        metavar="DIR",
        help="holds cifar10/cifar10_subset.npz and weights/*.th, see the README (default $SECATEUR_DATA)",
    )
    parser.add_argument("--episodes", type=options.positive, default=20, metavar="N", help="a network (20)")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto (default), cpu, cuda, ...")
    parser.add_argument("--seed", type=int, default=0, help="of the random actions")
    options.add_output_flags(parser, out=False)
    return parser


def run(argv: Sequence[str]) -> None:
    """Carry the verb out."""
    args = build_parser().parse(argv)
    if not args.assets.is_dir():
        raise options.UsageError(
            f"there is no folder {args.assets}; name it with --assets (the README says where from)"
        )
    record = {name: _time_network(name, args) for name in WEIGHTS}
    if args.json:
        print(json.dumps(record, indent=2))
    else:
        _show(record)


def _time_network(name: str, args: argparse.Namespace) -> dict[str, float]:
    task = load_task(
        name,
        data=f"npz:{args.assets / 'cifar10' / 'cifar10_subset.npz'}",
        weights=args.assets / "weights" / WEIGHTS[name],
        budget=Budget({"macs": 0.5}),
        device=options.device_of(args),
    )
    start = time.perf_counter()
    env = task_env(task)
    setup = time.perf_counter() - start
    return {"groups": len(env.group_names), "setup_s": setup, **time_episodes(env, args)}


def time_episodes(env: LayerPruningEnv, args: argparse.Namespace) -> dict[str, float]:
    """Time episodes of random actions, no two alike, after one that warms up.

    Returns:
        step_ms: median of the steps that only decide; steps_per_s: its inverse; episodes_per_s;
        evaluation_share: of an episode's time, spent in its last step beyond deciding.
    """
    rng = np.random.default_rng(args.seed)
    _episode(env, rng)
    deciding: list[float] = []
    evaluating: list[float] = []
    for _ in tqdm(
        range(args.episodes), unit="episode", disable=args.quiet or not sys.stderr.isatty(), leave=False
    ):
        *steps, last = _episode(env, rng)
        deciding += steps
        evaluating.append(last - statistics.median(steps))
    step, evaluation = statistics.median(deciding), statistics.median(evaluating)
    episode = step * len(env.group_names) + evaluation
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


def _show(record: dict[str, dict[str, Any]]) -> None:
    table = Table(title="environment, half the MACs, 512 reward images", title_justify="left")
    for heading in ("network", "groups", "set-up", "a step", "steps/s", "episodes/s", "in evaluation"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for name, row in record.items():
        table.add_row(
            name,
            str(row["groups"]),
            f"{row['setup_s']:.1f} s",
            f"{row['step_ms']:.2f} ms",
            f"{row['steps_per_s']:.0f}",
            f"{row['episodes_per_s']:.2f}",
            f"{row['evaluation_share']:.1%}",
        )
    console().print(table)


if __name__ == "__main__":
    sys.exit(run_verb("benchmark"))
