import copy
import json
import math

import pytest
import torch
from safetensors.torch import load, save_file
from torch import nn

from prunegym.pruning.data import Images
from prunegym.pruning.errors import DataError
from prunegym.pruning.evaluation.evaluate import Evaluation, evaluate, weights_bytes
from prunegym.pruning.metrics import accuracy, divergence, predictions
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.oracles import example
from tests.pruning.plans import cost_of
from tests.pruning.runtime.test_gates import compressed
from tests.pruning.runtime.test_outcomes import share_of
from tests.pruning.runtime.test_per_input import telling_apart


def test_to_json_and_back_is_equal():
    for evaluation in (Evaluation(0.9, 10, 20, 30, 1 / 3), Evaluation(None, 1, 2, 3)):
        assert Evaluation.from_dict(json.loads(json.dumps(evaluation.to_dict()))) == evaluation


def test_predictions_of_all_batches_in_evaluation_mode():
    model, _, images = example("plain")
    model = copy.deepcopy(model).train()
    before = model[0][1].running_mean.clone()
    labels = torch.tensor([1, 0, 4])
    logits, found = predictions(model, [(images[:2], labels[:2]), (images[2:], labels[2:])])
    torch.testing.assert_close(logits, example("plain")[0](images))
    assert torch.equal(found, labels)
    assert model.training
    assert torch.equal(model[0][1].running_mean, before)


def test_no_image_is_refused():
    with pytest.raises(DataError, match="no image to evaluate on"):
        predictions(example("plain")[0], [])


def test_an_output_that_is_no_row_of_logits_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 2, 1))
    with pytest.raises(DataError, match=r"\(1, 2, 4, 4\)"):
        predictions(model, [(torch.zeros(1, 3, 4, 4), torch.zeros(1, dtype=torch.long))])


def test_accuracy_by_hand():
    logits = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert accuracy(logits, torch.tensor([1, 0, 1])) == pytest.approx(2 / 3)


def test_divergence_by_hand():
    dense, compressed = torch.tensor([[0.0, math.log(3.0)]]), torch.zeros(1, 2)
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert divergence(compressed, dense) == pytest.approx(expected, rel=1e-6)
    assert divergence(torch.cat([compressed, dense]), torch.cat([dense, dense])) == pytest.approx(
        expected / 2
    )
    assert divergence(dense, dense) == pytest.approx(0.0, abs=1e-9)


def test_bytes_are_those_of_the_weights_file(tmp_path):
    model = example("plain")[0]
    save_file({name: t.clone() for name, t in model.state_dict().items()}, tmp_path / "w.safetensors")
    assert weights_bytes(model) == (tmp_path / "w.safetensors").stat().st_size
    assert load((tmp_path / "w.safetensors").read_bytes()).keys() == model.state_dict().keys()


def test_layers_that_share_weights_have_a_size():
    assert weights_bytes(example("tied-weights")[0]) > 0


def test_an_evaluation_measures_accuracy_parameters_and_bytes():
    model, _, images = example("plain")
    labels = model(images).argmax(1)
    sizes = (77, sum(p.numel() for p in model.parameters()), weights_bytes(model))
    assert evaluate(model, Images(images, labels), macs=77) == Evaluation(1.0, *sizes)


def test_the_multiply_adds_of_a_network_that_decides_for_each_input_are_measured():
    images = EXAMPLES["padded"].images(30)
    dense, graph, _ = example("padded")
    found, cost = compressed("padded", 0.0, 0.4), cost_of(dense, graph)
    model = found.model
    with torch.no_grad():
        ratios, counts = telling_apart(model, images, prices=cost.input_prices(found.levels))
        labels = model(images).argmax(1)
    macs = (share_of(counts, ratios) * cost.price("macs", cost.dense)).tolist()
    labels[:3] = (labels[:3] + 1) % 5
    found = evaluate(model, Images(images, labels), macs=77)
    assert found.macs == pytest.approx(sum(macs) / len(macs), abs=0.51)
    assert len(set(macs)) > 1
    assert found.accuracy == pytest.approx(0.9)
    assert found.params == sum(p.numel() for p in model.parameters())
    assert found.bytes == weights_bytes(model)
    few = evaluate(model, Images(images[:1], labels[:1], labelled=False), macs=77)
    assert few.macs == round(macs[0])
    assert (few.accuracy, few.agreement) == (None, 0.0)


def test_without_labels_it_is_agreement_with_the_dense_network():
    model, _, images = example("plain")
    answers = model(images).argmax(1)
    answers[0] = (answers[0] + 1) % 8
    found = evaluate(model, Images(images, answers, labelled=False), macs=77)
    assert found.accuracy is None
    assert found.agreement == pytest.approx(1 - 1 / len(images))
    assert found.quality == found.agreement


@pytest.mark.parametrize("accuracy", [0.0, 0.7])
def test_with_labels_plans_are_compared_by_accuracy_and_nothing_else(accuracy):
    assert Evaluation(accuracy, 1, 1, 1, agreement=0.9).quality == accuracy


def test_a_score_function_takes_the_place_of_images():
    model = EXAMPLES["plain"].model()
    found = evaluate(model, lambda network: -float(sum(p.numel() for p in network.parameters())), macs=7)
    assert found.score == found.quality == -found.params
    assert (found.accuracy, found.agreement, found.macs) == (None, None, 7)
