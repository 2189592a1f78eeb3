import numpy as np
import pytest

from prunegym.envs.action import decode_action
from prunegym.envs.budget import Limits
from prunegym.pruning.techniques import TECHNIQUES

GATES, CHANNELS = TECHNIQUES["gates"], TECHNIQUES["channels"]
LIMITS = Limits({"static_ratio": 0.9, "runtime_ratio": 0.5})


def decoded(action, even=0.4, mode="centred"):
    amounts = decode_action(
        np.array(action, dtype=np.float32),
        (GATES, CHANNELS),
        even={"channels": even, "gates": 0.0},
        limits=LIMITS,
        mode=mode,
    )
    return amounts["channels"], amounts["gates"]


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
    assert decoded(action) == pytest.approx((static, runtime))


def test_asking_for_more_than_an_even_ratio_beyond_the_limit_does_not_ask_for_less():
    assert decoded((0.0, 1.0), even=0.95)[0] == 0.95


@pytest.mark.parametrize(
    ("wish", "static"), [(-1.0, 0.0), (0.0, 0.45), (0.5, 0.675), (1.0, 0.9), (-7.0, 0.0)]
)
def test_a_raw_action_is_the_ratio_itself_and_skips_nothing(wish, static):
    assert decoded((1.0, wish), mode="raw") == (pytest.approx(static), 0.0)


@pytest.mark.parametrize(("wish", "bits"), [(-1.0, 32), (-0.5, 20), (0.0, 8), (0.5, 5), (1.0, 2), (7.0, 2)])
def test_of_a_technique_whose_amounts_fall_with_compression(wish, bits):
    """As of bits: 32 is neutral, 2 the limit; the even plan says 8."""

    class Bits(CHANNELS):
        name, key, neutral, limit = "bits", "bits", 32.0, 2.0

    (found,) = decode_action(np.array([wish]), (Bits,), even={"bits": 8.0}, limits=Limits()).values()
    assert found == pytest.approx(bits)
