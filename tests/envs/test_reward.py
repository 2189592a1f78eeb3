import json
import math

import pytest
import torch

from envs.reward import RewardTerms, reward_terms


def test_accuracy_and_divergence_by_hand():
    even, sure = [0.0, 0.0], [math.log(3.0), 0.0]  # softmax: (1/2, 1/2) and (3/4, 1/4)
    logits = torch.tensor([even, sure])
    dense_logits = torch.tensor([sure, sure])
    terms = reward_terms(logits, dense_logits, labels=torch.tensor([1, 0]))
    one_image = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)  # KL(dense || compressed)
    assert terms.accuracy == 0.5  # the first is a tie, which goes to class 0
    assert terms.divergence == pytest.approx(one_image / 2, rel=1e-6)


def test_the_dense_network_does_not_diverge_from_itself():
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    assert reward_terms(logits, logits, torch.zeros(6, dtype=torch.long)).divergence == 0.0


def test_the_total_is_one_for_the_dense_network_and_the_parts_are_plain_data():
    terms = reward_terms(torch.eye(2), torch.eye(2), torch.tensor([0, 0]))
    assert json.loads(json.dumps(terms.to_dict())) == {"accuracy": 0.5, "divergence": 0.0, "total": 1.0}


def test_the_total_falls_with_the_divergence():
    terms = RewardTerms(accuracy=0.5, divergence=math.log(4.0))
    assert terms.total == pytest.approx(0.25)


def test_the_goal_may_be_accuracy():
    terms = reward_terms(torch.eye(2), torch.zeros(2, 2), torch.tensor([0, 0]), goal="accuracy")
    assert terms.divergence > 0
    assert terms.total == 0.5
