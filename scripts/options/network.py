"""Flags that name a network and its images, and their records."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from prunegym.envs import DataSource, NetworkSource, trains_itself
from prunegym.pruning.data import KINDS
from prunegym.pruning.networks.registry import MAX_IMAGE_NUMBERS
from prunegym.scripts.options.parser import MAX_SEED, Parser, UsageError, number, whole

MODEL, DATA = "digits_resnet", "digits"  # the embedded default


@dataclass(frozen=True)
class TaskConfig:
    """A network with its images, and where and how both are loaded."""

    network: NetworkSource
    data: DataSource
    score: str | None = None  # a function that judges networks in place of images
    seed: int = 0
    device: str = "auto"
    progress: bool = True


def add_network_flags(parser: Parser) -> None:
    """Add the flags that name a network and its images, and say how the network takes them."""
    add_model_flags(parser)
    parser.add_argument(
        "--input-size",
        nargs=3,
        type=whole(1, MAX_IMAGE_NUMBERS),
        metavar=("C", "H", "W"),
        help="where the name does not say",
    )
    parser.add_argument(
        "--mean", nargs="+", type=number(-1000, 1000), metavar="M", help="per channel, of pixels in [0, 1]"
    )
    parser.add_argument(
        "--std", nargs="+", type=number(1e-6, 1000), metavar="S", help="per channel, of pixels in [0, 1]"
    )


def add_model_flags(parser: Parser, *, compressed: bool = False) -> None:
    """Add the flags that name a network and its images; those of a compressed one need not be named."""
    model, data = (None, None) if compressed else (MODEL, DATA)
    parser.add_argument(
        "--model",
        default=model,
        metavar="NAME",
        help="digits_resnet, cifar_resnet20|32|44|56|110, torchvision/NAME, timm/NAME, FILE.py:FACTORY "
        f"(default: {model or 'what was compressed'})",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="trained weights: safetensors or torch; or factory, those that FILE.py:NAME returns",
    )
    parser.add_argument(
        "--data",
        default=data,
        metavar="SPEC",
        help=f"{', '.join(KINDS)}, or none (default: {data or 'what it was measured on'})",
    )
    parser.add_argument(
        "--download", action="store_true", help="fetch images that --data or --eval-data misses, of CIFAR"
    )
    parser.add_argument(
        "--seed", type=whole(0, MAX_SEED), default=0, help="of splits, calibration and learning (default 0)"
    )
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="auto (default), cpu, cuda, cuda:1, ..."
    )


def add_compressed_flag(parser: Parser) -> None:
    """Add the flag that names a compressed network."""
    parser.add_argument("--compressed", type=Path, metavar="DIR", help="a folder that train or prune wrote")


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


def network_config(flags: argparse.Namespace) -> NetworkSource:
    """Return the network that flags name, by default the embedded one."""
    return NetworkSource(
        flags.model or MODEL,
        flags.weights,
        tuple(flags.input_size) if flags.input_size else None,
        tuple(flags.mean) if flags.mean else None,
        tuple(flags.std) if flags.std else None,
    )


def task_config(
    flags: argparse.Namespace,
    *,
    calibration: str | None = None,
    eval_data: str | None = None,
    score: str | None = None,
) -> TaskConfig:
    """Return the network and its images that flags name, by default the embedded ones.

    Raises:
        UsageError: --eval-data is given beside data of its own.
    """
    data = DataSource(flags.data or DATA, calibration, eval_data, flags.download)
    check_eval_data(data, score)
    return TaskConfig(network_config(flags), data, score, flags.seed, flags.device, not flags.quiet)


def check_eval_data(data: DataSource, score: str | None = None) -> None:
    """Raise UsageError if --eval-data is given beside what reports already."""
    if data.eval_data is not None and score:
        raise UsageError("--score takes the place of test images; leave out --eval-data")
    if data.eval_data is not None and data.spec != "none":
        raise UsageError(f"--eval-data goes with --data none; {data.spec} has test images of its own")


def check_compressed(flags: argparse.Namespace) -> None:
    """Raise UsageError if a flag says of a dense network what a --compressed one says of itself."""
    given = {
        "weights": flags.weights,
        "input-size": flags.input_size,
        "mean": flags.mean,
        "std": flags.std,
    }
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"a --compressed network knows its own; leave out --{name}")


def further_networks(flags: argparse.Namespace) -> dict[str, Path | None]:
    """Return the networks that --also names, and their weights.

    Raises:
        UsageError: one is named twice, or without the weights it needs.
    """
    found: list[tuple[str, Path | None]] = []
    for text in flags.also:
        name, equals, weights = text.partition("=")
        if not equals and not trains_itself(name, flags.data):
            raise UsageError(f"{name} is untrained: name its trained weights with --also {name}=WEIGHTS")
        if equals and not weights:
            raise UsageError(f"--also {text} names no file of weights; write --also {name}=WEIGHTS")
        found.append((name, Path(weights) if equals else None))
    names = [flags.model, *(name for name, _ in found)]
    if len(set(names)) < len(names):
        raise UsageError(f"a network is named twice among {', '.join(names)}; name each once")
    return dict(found)
