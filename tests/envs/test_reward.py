import json
import math

import pytest

from prunegym.envs.reward import RewardTerms, Score


def test_the_total_falls_with_the_loss_as_a_share_of_uniform_prunings():
    assert RewardTerms(Score(0.3), 0.2).total == pytest.approx(math.exp(-0.3 / 0.2))


def test_without_a_loss_the_total_is_one_and_with_uniform_prunings_0_37():
    assert RewardTerms(Score(0.0), 0.2).total == 1.0
    assert RewardTerms(Score(0.2), 0.2).total == pytest.approx(0.3679, abs=1e-4)


def test_where_uniform_pruning_does_no_harm_noise_is_not_blown_up():
    assert RewardTerms(Score(1e-5), 0.0).total == pytest.approx(math.exp(-0.01))


@pytest.mark.parametrize(
    "score",
    [
        Score(0.1, accuracy=0.5, divergence=0.1),
        Score(0.1, accuracy=0.5, divergence=0.1, first_loss=0.2),
        Score(0.1, accuracy=0.9, divergence=0.3, estimated=True),
        Score(0.1, score=-17.5),
    ],
)
def test_a_score_is_read_back_from_the_parts_which_are_plain_data(score):
    parts = RewardTerms(score, 0.2).to_dict()
    assert Score.from_parts(json.loads(json.dumps(parts))) == score
    assert parts["total"] == pytest.approx(math.exp(-0.5))
    assert parts["reference"] == 0.2
