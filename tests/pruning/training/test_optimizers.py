import math

import pytest
import torch
from torch import nn

from prunegym.pruning.errors import UnknownNameError
from prunegym.pruning.training.optimizers import OPTIMIZERS, SCHEDULES, warmed_up


def rates(schedule, steps):
    """The rate of each step, of 1 at most."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    found, follower = [], warmed_up(schedule)(optimizer, steps)
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        follower.step()
    return found


@pytest.mark.parametrize(
    ("schedule", "falling"),
    [
        ("cosine", [(1 + math.cos(math.pi * at / 18)) / 2 for at in range(18)]),
        ("linear", [1 - at / 18 for at in range(18)]),
        ("constant", [1.0] * 18),
    ],
)
def test_the_rate_rises_for_a_tenth_of_the_steps_then_takes_its_schedule(schedule, falling):
    assert rates(schedule, 20) == pytest.approx([0.5, 1.0, *falling])


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_a_single_step_is_taken_at_the_full_rate(schedule):
    assert rates(schedule, 1) == [1.0]


def two_steps(name, gradients):
    """A weight of 1 after a step along each gradient, at rate 0.1 and weight decay 0.5."""
    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = OPTIMIZERS[name].build([weight], 0.1, 0.5)
    for gradient in gradients:
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
    return weight.item()


def test_sgd_by_hand():
    velocity = 2.0 + 0.5 * 1.0
    weight = 1.0 - 0.1 * (velocity + 0.9 * velocity)
    gradient = 3.0 + 0.5 * weight
    velocity = 0.9 * velocity + gradient
    assert two_steps("sgd", [2.0, 3.0]) == pytest.approx(weight - 0.1 * (gradient + 0.9 * velocity))


def test_adamw_decays_apart_from_the_gradient_by_hand():
    weight, first, second = 1.0, 0.0, 0.0
    for step, gradient in enumerate([2.0, 3.0], start=1):
        weight -= 0.1 * 0.5 * weight
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        weight -= 0.1 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)) ** 0.5 + 1e-8)
    assert two_steps("adamw", [2.0, 3.0]) == pytest.approx(weight)


def test_a_wrong_name_brings_the_right_one():
    with pytest.raises(UnknownNameError, match=r"no optimizer named 'adam'\. Did you mean 'adamw'\?"):
        OPTIMIZERS["adam"]
    with pytest.raises(UnknownNameError, match=r"no schedule named 'cosin'\. Did you mean 'cosine'\?"):
        warmed_up("cosin")
