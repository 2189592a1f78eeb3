"""The flags that verbs share, and what they mean."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunegym.agents import ALGORITHMS, DEFAULT_ALGORITHM, SEARCHES
from prunegym.envs import (
    Budget,
    BudgetRange,
    LayerPruningEnv,
    Limits,
    Task,
    load_task,
    parse_budget,
    task_env,
    trains_itself,
)
from prunegym.envs.budget import leading_measure
from prunegym.pruning.apply import Method
from prunegym.pruning.calibration.synthesis import SYNTHESES
from prunegym.pruning.compensation import COMPENSATIONS
from prunegym.pruning.criteria import CRITERIA
from prunegym.pruning.data import KINDS, ImageSplits, load_splits
from prunegym.pruning.latency import LatencyTable, latency_table
from prunegym.pruning.metrics import ScoreFunction
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.networks.registry import NetworkSpec
from prunegym.pruning.surgery.verification import trace
from prunegym.pruning.user_functions import named_function
from prunegym.scripts.parser import Parser, UsageError, natural, positive


def add_network_flags(parser: Parser) -> None:
    """Add the flags that name a network and its images, and say how the network takes them."""
    add_model_flags(parser)
    parser.add_argument(
        "--input-size", nargs=3, type=int, metavar=("C", "H", "W"), help="where the name does not say"
    )
    parser.add_argument("--mean", nargs="+", type=float, metavar="M", help="per channel, of pixels in [0, 1]")
    parser.add_argument("--std", nargs="+", type=float, metavar="S", help="per channel, of pixels in [0, 1]")


def add_model_flags(parser: Parser, *, compressed: bool = False) -> None:
    """Add the flags that name a network and its images; those of a compressed one need not be named."""
    model, data = (None, None) if compressed else ("digits_resnet", "digits")
    parser.add_argument(
        "--model",
        default=model,
        metavar="NAME",
        help="digits_resnet, cifar_resnet20|32|44|56|110, torchvision/NAME, timm/NAME, FILE.py:FACTORY "
        f"(default: {model or 'what was compressed'})",
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="trained weights: safetensors or torch")
    parser.add_argument(
        "--data",
        default=data,
        metavar="SPEC",
        help=f"{', '.join(KINDS)}, or none (default: {data or 'what it was measured on'})",
    )
    parser.add_argument(
        "--download", action="store_true", help="fetch images that --data or --eval-data misses, of CIFAR"
    )
    parser.add_argument("--seed", type=int, default=0, help="of splits, calibration and learning (default 0)")
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="auto (default), cpu, cuda, cuda:1, ..."
    )


def add_pruning_flags(parser: Parser, *, per_input: bool = False) -> None:
    """Add the flags that say how a plan is applied, and to which layers; or how for each input."""
    compensation = "least-squares-progressive" if per_input else "least-squares"
    parser.add_argument("--criterion", default="l1", metavar="NAME", help=f"one of: {', '.join(CRITERIA)}")
    parser.add_argument(
        "--compensation",
        default=compensation,
        metavar="NAME",
        help=f"one of: {', '.join(COMPENSATIONS)} (default {compensation})",
    )
    parser.add_argument(
        "--calibration",
        metavar="NAME",
        help="data (default where there is some), or made from the weights alone: "
        f"{', '.join(SYNTHESES)} (default: distilled)",
    )
    add_eval_data_flag(parser)
    if not per_input:
        add_score_flag(parser)
    parser.add_argument(
        "--max-static-ratio", type=float, default=0.9, metavar="R", help="of any group (default 0.9)"
    )
    parser.add_argument(
        "--max-runtime-ratio",
        type=float,
        default=0.9 if per_input else None,
        metavar="R",
        help="likewise (default 0.9)"
        if per_input
        else "likewise (default 0.5; with a latency budget 0); 0: no gates",
    )
    parser.add_argument(
        "--round-to", type=positive, default=1, metavar="N", help="keep units in multiples of N"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="admit groups whose writers all match; repeatable",
    )
    parser.add_argument(
        "--protect",
        action="append",
        default=[],
        metavar="PATTERN",
        help="freeze groups with a matching writer; repeatable",
    )


def add_eval_data_flag(parser: Parser) -> None:
    """Add the flag that names images where --data names none."""
    parser.add_argument(
        "--eval-data", metavar="SPEC", help="with --data none: images to report on once all is decided"
    )


def add_score_flag(parser: Parser) -> None:
    """Add the flag that names what judges networks in place of images."""
    parser.add_argument(
        "--score",
        metavar="FUNCTION",
        help="FILE.py:NAME or MODULE:NAME: score(model) -> float, higher is better, in place of accuracy on "
        "images; --data then serves calibration alone",
    )


def score_of(args: argparse.Namespace) -> ScoreFunction | None:
    """Return the function that --score names."""
    return named_function(args.score) if getattr(args, "score", None) else None


def add_budget_flag(parser: Parser, *, ranges: bool = False, average: bool = False) -> None:
    """Add the flag for budgets, and ranges of them; or for one that inputs keep to on average."""
    if average:
        parser.add_argument(
            "--budget",
            nargs="+",
            action="extend",
            metavar="macs=SHARE",
            help="multiply-adds that may remain, on average over inputs (default macs=0.5)",
        )
        return
    also = "; a range, macs=0.3..0.8, learns a policy for reuse" if ranges else ""
    parser.add_argument(
        "--budget",
        nargs="+",
        action="extend",
        metavar="NAME=SHARE",
        help="what may remain, such as macs=0.5 params=0.6 (default macs=0.5); latency=0.6, on this device: "
        f"no gates, and its table is measured first, see `prunegym latency`{also}",
    )


def budget_of(args: argparse.Namespace) -> Budget | BudgetRange:
    """Return the budget that --budget asks for, half the multiply-adds if it is not given.

    The default of --max-runtime-ratio depends on it.

    Raises:
        UsageError: it names latency, and gates are asked for beside it.
    """
    args.budget = args.budget or ["macs=0.5"]
    budget = parse_budget(args.budget)
    timed = leading_measure(budget) == "latency"
    if args.max_runtime_ratio is None:
        args.max_runtime_ratio = 0.0 if timed else 0.5
    elif timed and args.max_runtime_ratio > 0:
        raise UsageError(
            f"--max-runtime-ratio {args.max_runtime_ratio:g} asks for gates, whose latency no table knows; "
            "leave it out with a latency budget"
        )
    return budget


def one_budget_of(args: argparse.Namespace) -> Budget:
    """Return the budget that --budget asks for.

    Raises:
        UsageError: it is a range.
    """
    budget = budget_of(args)
    if isinstance(budget, BudgetRange):
        raise UsageError(f"{' '.join(args.budget)} is a range, which only train understands; give one budget")
    return budget


def add_learning_flags(parser: Parser) -> None:
    """Add the flags about how decisions are learned or searched for."""
    parser.add_argument(
        "--algo",
        default=DEFAULT_ALGORITHM,
        metavar="NAME",
        help=f"learns a policy: {', '.join(ALGORITHMS)} (default {DEFAULT_ALGORITHM}); "
        f"searches for a plan: {', '.join(SEARCHES)}",
    )
    parser.add_argument("--episodes", type=positive, default=200, metavar="N", help="plans to evaluate (200)")
    parser.add_argument(
        "--baselines",
        nargs="*",
        choices=["sensitivity", *SEARCHES],
        metavar="NAME",
        help=f"to compare with, for one network and one budget: sensitivity, {', '.join(SEARCHES)} "
        "(default random)",
    )
    add_hyper_flag(parser)
    parser.add_argument("--init-policy", metavar="DIR", help="go on from a policy: a folder, or builtin")
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="NAME=WEIGHTS",
        help="a further network to learn on, for a policy for reuse; repeatable",
    )
    parser.add_argument("--n-envs", type=positive, default=1, metavar="K", help="processes that evaluate (1)")
    parser.add_argument(
        "--cluster",
        nargs="?",
        const="auto",
        metavar="HOST:PORT",
        help="evaluate in --n-envs processes of a Ray cluster: the one at this address; without an address "
        "the one this machine is part of, else one of this machine alone (local: that in any case)",
    )
    parser.add_argument(
        "--first-images",
        type=positive,
        metavar="N",
        help="score plans on N reward images first, and only promising ones on all",
    )
    parser.add_argument(
        "--dense-reward", action="store_true", help="reward each step by the loss expected of its group"
    )


def add_per_input_flags(parser: Parser) -> None:
    """Add the flags about how decisions for each input are learned."""
    parser.add_argument(
        "--episodes", type=positive, default=25_000, metavar="N", help="inputs in each round (25000)"
    )
    parser.add_argument("--rounds", type=positive, default=2, metavar="N", help="of learning (2)")
    parser.add_argument(
        "--tune-epochs",
        type=natural,
        default=0,
        metavar="N",
        help="of fine-tuning after each round, by distillation (0)",
    )
    parser.add_argument("--plan", type=Path, metavar="FILE", help="static ratios, and those to depart from")
    parser.add_argument(
        "--static-ratio", type=float, default=0.0, metavar="R", help="of every group, without --plan (0)"
    )
    add_hyper_flag(parser)


def add_hyper_flag(parser: Parser) -> None:
    """Add the flag for hyper-parameters."""
    parser.add_argument(
        "--hyper",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="hyper-parameter of the algorithm, such as learning_rate=0.001; repeatable",
    )


def learned_on(args: argparse.Namespace) -> dict[str, Any]:
    """Return where a policy comes from, plain data."""
    names = [args.model, *(text.partition("=")[0] for text in args.also)]
    return {"networks": names, "budget": args.budget, "episodes": args.episodes, "seed": args.seed}


def add_output_flags(parser: Parser, *, out: bool = True, resume: bool = False) -> None:
    """Add the flags about what is written and shown."""
    if out:
        parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the results")
        parser.add_argument("--overwrite", action="store_true", help="replace the run that --out holds")
    if resume:
        parser.add_argument("--resume", action="store_true", help="go on with the run that --out holds")
    parser.add_argument("--json", action="store_true", help="print the record as JSON instead of a table")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def device_of(args: argparse.Namespace) -> str:
    """Return the torch device that --device names.

    Raises:
        UsageError: there is no such device here.
    """
    if args.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=args.device).item()
    except (RuntimeError, AssertionError) as error:
        cause = str(error).splitlines()[0]
        raise UsageError(f"--device {args.device} cannot be used here ({cause}); try auto or cpu") from error
    return args.device


def task_of(
    args: argparse.Namespace,
    budget: Budget | BudgetRange,
    *,
    model: str | None = None,
    weights: Path | None = None,
) -> Task:
    """Return the task that the flags describe, or the same task of another network.

    Raises:
        UsageError: --eval-data is given beside data of its own.
    """
    refuse_eval_data(args)
    return load_task(
        model or args.model,
        data=args.data,
        calibration=getattr(args, "calibration", None),
        eval_data=getattr(args, "eval_data", None),
        score=score_of(args),
        weights=weights if model else args.weights,
        input_size=tuple(args.input_size) if args.input_size else None,
        mean=args.mean,
        std=args.std,
        budget=budget,
        device=device_of(args),
        seed=args.seed,
        download=args.download,
        progress=not args.quiet,
    )


def networks_of(args: argparse.Namespace) -> list[tuple[str, Path | None]]:
    """Return the networks to learn on, and their weights.

    Raises:
        UsageError: one is named twice, or without the weights it needs.
    """
    found = [(args.model, args.weights)]
    for text in args.also:
        name, equals, weights = text.partition("=")
        if not equals and not trains_itself(name, args.data):
            raise UsageError(f"{name} is untrained: name its trained weights with --also {name}=WEIGHTS")
        found.append((name, Path(weights) if equals else None))
    names = [name for name, _ in found]
    if len(set(names)) < len(names):
        raise UsageError(f"a network is named twice among {', '.join(names)}; name each once")
    return found


def splits_of(args: argparse.Namespace, network: NetworkSpec) -> ImageSplits:
    """Return the images that --data names, for a network that is known already."""
    return load_splits(args.data, network, seed=args.seed, download=args.download, progress=not args.quiet)


def refuse_eval_data(args: argparse.Namespace) -> None:
    """Raise UsageError if --eval-data is given beside what reports already."""
    if getattr(args, "eval_data", None) is not None and getattr(args, "score", None):
        raise UsageError("--score takes the place of test images; leave out --eval-data")
    if getattr(args, "eval_data", None) is not None and args.data != "none":
        raise UsageError(f"--eval-data goes with --data none; {args.data} has test images of its own")


def judged_on(args: argparse.Namespace) -> str:
    """Return what the figures are measured on, for a title."""
    if getattr(args, "score", None):
        return f"by {args.score}"
    if args.data == "none" and args.eval_data is None:
        return "on synthetic images: agreement with the dense network"
    return "on the test images"


def refuse_dense(args: argparse.Namespace) -> None:
    """Raise UsageError if a flag says of a dense network what a --compressed one says of itself."""
    for name in ("weights", "input_size", "mean", "std"):
        if getattr(args, name) is not None:
            flag = name.replace("_", "-")
            raise UsageError(f"a --compressed network knows its own; leave out --{flag}")


def method_of(args: argparse.Namespace) -> Method:
    """Return how the flags say that plans are carried out.

    Raises:
        UnknownNameError: there is no such criterion or compensation.
    """
    CRITERIA[args.criterion]
    COMPENSATIONS[args.compensation]
    return Method(criterion=args.criterion, compensation=args.compensation, round_to=args.round_to)


def network_of(task: Task, args: argparse.Namespace) -> PrunableNetwork:
    """Return the task's network, traced and calibrated as the flags say."""
    return PrunableNetwork(
        task.model,
        task.calibration,
        method=method_of(args),
        only=args.only,
        protect=args.protect,
        seed=args.seed,
    )


def env_of(task: Task, args: argparse.Namespace, **settings: Any) -> LayerPruningEnv:
    """Return the task's environment, set up as the flags and further `settings` say."""
    flags = {
        "method": method_of(args),
        "limits": Limits(static=args.max_static_ratio, runtime=args.max_runtime_ratio),
        "only": args.only,
        "protect": args.protect,
        "seed": args.seed,
    }
    if leading_measure(task.budget) == "latency":
        flags["latency"] = table_of(task.model, task.network.input_shape, args)
    return task_env(task, **flags, **settings)


def table_of(model: nn.Module, input_shape: Sequence[int], args: argparse.Namespace) -> LatencyTable:
    """Return the latency table of a network on its device, measured with a bar where it is not cached."""
    graph = trace(model, input_shape)
    return latency_table(model, graph, remeasure=getattr(args, "remeasure", False), progress=not args.quiet)


def reward_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of an environment to learn in that concern its reward."""
    return {"first_images": args.first_images, "dense_reward": args.dense_reward}


def plain(args: argparse.Namespace, *, without: Iterable[str] = ()) -> dict[str, Any]:
    """Return the flags as plain data, fit for JSON."""
    entries = {name: value for name, value in vars(args).items() if name not in {*without, "config"}}
    return {name: str(value) if isinstance(value, Path) else value for name, value in entries.items()}
