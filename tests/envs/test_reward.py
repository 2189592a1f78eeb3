import json
import math

import pytest
import torch

from envs.reward import RewardTerms, Score, score_outputs


def test_accuracy_and_divergence_by_hand():
    even, sure = [0.0, 0.0], [math.log(3.0), 0.0]  # softmax: (1/2, 1/2) and (3/4, 1/4)
    logits = torch.tensor([even, sure])
    dense_logits = torch.tensor([sure, sure])
    score = score_outputs(logits, dense_logits, labels=torch.tensor([1, 0]))
    one_image = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)  # KL(dense || compressed)
    assert score.accuracy == 0.5  # the first is a tie, which goes to class 0
    assert score.divergence == pytest.approx(one_image / 2, rel=1e-6)


def test_the_dense_network_does_not_diverge_from_itself():
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    assert score_outputs(logits, logits, torch.zeros(6, dtype=torch.long)).divergence == 0.0


@pytest.mark.parametrize(
    ("goal", "total"),
    [("divergence", math.exp(-0.3 / 0.2)), ("accuracy", math.exp(-0.4 / 0.2))],
)
def test_the_total_falls_with_the_loss_as_a_share_of_uniform_prunings(goal, total):
    assert RewardTerms(Score(0.6, 0.3), 0.2, goal).total == pytest.approx(total)


def test_without_a_loss_the_total_is_one_and_with_uniform_prunings_0_37():
    assert RewardTerms(Score(0.6, 0.0), 0.2).total == 1.0
    assert RewardTerms(Score(0.6, 0.2), 0.2).total == pytest.approx(0.3679, abs=1e-4)


def test_where_uniform_pruning_does_no_harm_noise_is_not_blown_up():
    assert RewardTerms(Score(0.6, 1e-5), 0.0).total == pytest.approx(math.exp(-0.01))


@pytest.mark.parametrize("score", [Score(0.5, 0.1), Score(0.5, 0.1, first_loss=0.2), Score(0.5, 0.1, True)])
def test_a_score_is_read_back_from_the_parts_which_are_plain_data(score):
    parts = RewardTerms(score, 0.2).to_dict()
    assert Score.from_parts(json.loads(json.dumps(parts))) == score
    assert parts["total"] == pytest.approx(math.exp(-0.5))
    assert parts["reference"] == 0.2
