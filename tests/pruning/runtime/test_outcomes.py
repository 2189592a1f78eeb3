import numpy as np
import pytest
import torch

from prunegym.pruning.data import Images
from prunegym.pruning.plan import kept_units
from prunegym.pruning.runtime.outcomes import input_outcomes, keep_budget_
from prunegym.pruning.runtime.per_input import per_input_policy_of
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.oracles import example, snapshot
from tests.pruning.plans import cost_of, levels_of
from tests.pruning.runtime.test_gates import compressed
from tests.pruning.runtime.test_per_input import LARGEST, telling_apart

NAME = "padded"


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def deciding():
    """(a network that decides for each input, how, images that come in several batches, their counts)"""
    found, images = compressed(NAME, 0.0, 0.4, "least-squares"), EXAMPLES[NAME].images(300)
    model, graph, _ = example(NAME)
    prices = cost_of(model, graph).input_prices(found.levels)
    ratios, counts = telling_apart(found.model, images, prices=prices)
    return found.model, ratios, Images(images, torch.arange(300) % 5), counts


def share_of(counts, ratios):
    """The share of the dense network's multiply-adds, [images], for these units, the policy's included."""
    model, graph, _ = example(NAME)
    cost, found = cost_of(model, graph), []
    gated = np.array([group.ungated is None for group in graph.prunable])
    inputs = np.array([graph.layers[group.layers[0]].cin for group in graph.prunable])
    for row in counts.tolist():
        executed = cost.dense["channels"].copy()
        executed[gated] = row
        whole = gated & (executed == cost.dense["channels"])  # the gate is there although all units run
        gates = int((inputs * executed)[whole].sum())
        found.append(cost.price("macs", levels_of(cost.dense["channels"], executed)) + gates + ratios.macs)
    return torch.tensor(found).double() / cost.price("macs", cost.dense)


def test_outcomes_are_those_of_every_image(deciding):
    model, ratios, images, counts = deciding
    expected = model(images.images)
    found = input_outcomes(model.train(), images)
    assert model.training
    torch.testing.assert_close(found.logits, expected)
    assert torch.equal(found.labels, images.labels)
    assert found.ratios.shape == (300, len(ratios.units))
    torch.testing.assert_close(
        torch.from_numpy(found.ratios), (1 - counts / torch.tensor(ratios.units)).double()
    )
    torch.testing.assert_close(torch.from_numpy(found.macs), share_of(counts, ratios))


def ends(ratios):
    """The shares of images for which as much as can be is skipped, and nothing is."""
    least = torch.tensor([[kept_units(units, LARGEST) for units in ratios.units]])
    return [float(share_of(row, ratios)) for row in (least, torch.tensor([ratios.units]))]


@pytest.mark.parametrize("way", [0.15, 0.4, 0.6, 0.85])
def test_a_budget_within_reach_is_used_and_not_exceeded(deciding, way):
    model, ratios, images, _ = deciding
    least, most = ends(ratios)
    share = least + way * (most - least)
    before = snapshot(model)
    found = keep_budget_(model, images, share)
    model(images.images)
    actual = float(share_of(torch.stack(ratios.decided, dim=1), ratios).mean())
    assert found == pytest.approx(actual)
    assert 0.99 * share < found <= share
    offset = float(ratios.offset)
    ratios.offset.sub_(2e-3)  # none that is nearer would do
    assert input_outcomes(model, images).macs.mean() > share
    ratios.offset.fill_(offset)
    changed = [key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])]
    assert [key.rpartition(".")[2] for key in changed] == ["offset"]


@pytest.mark.parametrize("loudness", [1.0, 50.0])
def test_a_budget_out_of_reach_is_met_as_nearly_as_can_be(deciding, loudness):
    model, ratios, images, _ = deciding
    ratios.policy[-1].weight.mul_(loudness)  # actions far beyond the range as well
    least, most = ends(ratios)
    assert keep_budget_(model, images, 0.5 * least) == pytest.approx(least)
    assert keep_budget_(model, images, 2.0) == pytest.approx(most)


def test_the_network_that_decides_is_found(deciding):
    model, ratios, *_ = deciding
    assert per_input_policy_of(model) is ratios
