"""Registries of optimizers and of schedules of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from prunegym.pruning.registry import Registry

OptimizerOf = Callable[[Sequence[nn.Parameter], float, float], Optimizer]  # (trained, rate, weight decay)

WARM_UP_SHARE = 0.1  # of all steps


@dataclass(frozen=True)
class OptimizerKind:
    """An optimizer and its default learning rate."""

    build: OptimizerOf
    learning_rate: float


OPTIMIZERS: Registry[OptimizerKind] = Registry("optimizer")
SCHEDULES: Registry[Callable[[int, int], float]] = Registry("schedule")  # (step, steps) -> share of the rate


def nesterov(parameters: Sequence[nn.Parameter], learning_rate: float, weight_decay: float) -> SGD:
    """Return stochastic gradient descent with Nesterov momentum 0.9."""
    return SGD(parameters, lr=learning_rate, momentum=0.9, nesterov=True, weight_decay=weight_decay)


OPTIMIZERS.register("sgd")(OptimizerKind(nesterov, 3e-3))
OPTIMIZERS.register("adamw")(
    OptimizerKind(lambda parameters, rate, decay: AdamW(parameters, lr=rate, weight_decay=decay), 1e-3)
)


@SCHEDULES.register("cosine")
def _cosine(step: int, steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / steps))


@SCHEDULES.register("linear")
def _linear(step: int, steps: int) -> float:
    return 1 - step / steps


@SCHEDULES.register("constant")
def _constant(step: int, steps: int) -> float:
    return 1.0


def warmed_up(schedule: str) -> Callable[[Optimizer, int], LambdaLR]:
    """Return a schedule that first rises linearly to the optimizer's rate, for WARM_UP_SHARE of all steps.

    Raises:
        UnknownNameError: there is no such schedule.
    """
    share_at = SCHEDULES[schedule]

    def schedule_of(optimizer: Optimizer, steps: int) -> LambdaLR:
        warm = max(1, round(WARM_UP_SHARE * steps))

        def share(step: int) -> float:
            return (step + 1) / warm if step < warm else share_at(step - warm, max(1, steps - warm))

        return LambdaLR(optimizer, share)

    return schedule_of
