import numpy as np
import pytest

from prunegym.envs.action import decode_action, decode_raw_action
from prunegym.envs.budget import Limits

LIMITS = Limits(static=0.9, runtime=0.5)


@pytest.mark.parametrize(
    ("action", "static", "runtime"),
    [
        ((0.0, 0.0), 0.4, 0.0),  # the even plan
        ((0.0, -1.0), 0.0, 0.0),
        ((0.0, 1.0), 0.9, 0.0),
        ((0.0, -0.25), 0.3, 0.0),  # 0.4 (1 - 0.25)
        ((0.0, 0.5), 0.65, 0.0),  # 0.4 + 0.5 (0.9 - 0.4)
        ((1.0, 0.0), 0.4, 0.5),
        ((0.2, 0.0), 0.4, 0.1),
        ((-0.9, 0.0), 0.4, 0.0),  # half of the runtime axis means no gate
        ((7.0, -7.0), 0.0, 0.5),  # clipped
    ],
)
def test_an_action_by_hand(action, static, runtime):
    decoded = decode_action(np.array(action, dtype=np.float32), even_ratio=0.4, limits=LIMITS, gated=True)
    assert decoded == pytest.approx((static, runtime))


def test_a_group_without_a_gate_gets_no_runtime_ratio():
    action = np.array([1.0, 0.0], dtype=np.float32)
    assert decode_action(action, even_ratio=0.4, limits=LIMITS, gated=False) == (0.4, 0.0)


def test_asking_for_more_than_an_even_ratio_beyond_the_limit_does_not_ask_for_less():
    action = np.array([0.0, 1.0], dtype=np.float32)
    assert decode_action(action, even_ratio=0.95, limits=LIMITS, gated=True)[0] == 0.95


@pytest.mark.parametrize(
    ("wish", "static"), [(-1.0, 0.0), (0.0, 0.45), (0.5, 0.675), (1.0, 0.9), (-7.0, 0.0)]
)
def test_a_raw_action_is_the_ratio_itself_and_skips_nothing(wish, static):
    action = np.array([1.0, wish], dtype=np.float32)
    assert decode_raw_action(action, limits=LIMITS) == (pytest.approx(static), 0.0)
