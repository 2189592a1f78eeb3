"""Measure how long networks take for one image."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils import benchmark


def measure_latency(models: Mapping[str, nn.Module], image: Tensor, *, rounds: int = 5) -> dict[str, float]:
    """Return each network's median milliseconds for one image; see `time_in_turn`."""
    times = time_in_turn(models, image, rounds=rounds)
    return {name: ascending[math.floor(len(ascending) / 2)] for name, ascending in times.items()}


def time_in_turn(
    models: Mapping[str, nn.Module], image: Tensor, *, rounds: int = 5
) -> dict[str, list[float]]:
    """Return each network's milliseconds for one image in each round, ascending.

    Args:
        models: name -> network in evaluation mode; timed in interleaved rounds, so that a machine whose
            speed drifts favours none.
        image: [1, ...], on their device.
        rounds: the number of times that each is timed, for at least 0.05 s each.
    """
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            times[name].append(time_once(model, image, seconds=0.05))
    return {name: sorted(each) for name, each in times.items()}


@torch.inference_mode()
def time_once(model: nn.Module, image: Tensor, *, seconds: float) -> float:
    """Return the milliseconds of a network for one image, the median of runs for at least `seconds`."""
    threads = torch.get_num_threads()
    alone = threads == 1 and image.device.type == "cpu"
    timer = benchmark.Timer(
        "model(x)",
        globals={"model": model, "x": image},
        num_threads=threads,
        # one thread's own clock stands still while other processes have the processor
        timer=time.thread_time if alone else benchmark.timer,
    )
    return 1e3 * timer.blocked_autorange(min_run_time=seconds).median
