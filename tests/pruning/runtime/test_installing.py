import pytest
import torch

from prunegym.pruning.runtime.gates import gates_of
from prunegym.pruning.runtime.installing import attach_per_input_policy_
from prunegym.pruning.runtime.per_input import FEATURES, InputSummary, find_per_input_policy
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.oracles import example, snapshot
from tests.pruning.plans import cost_of
from tests.pruning.runtime.test_gates import GATED, compressed

LARGEST = 0.9


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def installed(name, images, *, static=0.2, hidden=(6, 4)):
    """(a network that decides for each input, what decides)"""
    model, graph, _ = example(name)
    found = compressed(name, static, 0.4, "least-squares")
    prices = cost_of(model, graph).input_prices(found.levels)
    ratios = attach_per_input_policy_(
        found.model, images, model(images), prices=prices, hidden=hidden, largest=LARGEST
    )
    return found.model, ratios


@pytest.mark.conformance
@pytest.mark.parametrize("name", GATED)
def test_at_first_the_network_does_what_the_plan_says(name):
    images = EXAMPLES[name].images(9)
    plain = compressed(name, 0.2, 0.4, "least-squares")
    expected, before = plain.model(images), snapshot(plain.model)
    model, ratios = installed(name, images)
    assert torch.equal(model(images), expected)
    assert [counts.tolist() for counts in ratios.decided] == [[site.executed] * 9 for site in plain.gates]
    after = model.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


def test_it_is_attached_as_it_was_asked_for():
    model, ratios = installed("padded", EXAMPLES["padded"].images(9))
    assert find_per_input_policy(gates_of(model)) is ratios
    assert (ratios.hidden, ratios.largest) == ((6, 4), LARGEST)
    assert not any(one.requires_grad for one in ratios.parameters())
    assert not any(module.training for module in ratios.modules())
    ratios.offset.fill_(9.0)
    model(EXAMPLES["padded"].images(2))
    for counts, units in zip(ratios.decided, ratios.units, strict=True):
        assert counts.tolist() == [max(1, int(units * (1 - LARGEST) + 0.5))] * 2


def test_images_in_flight_are_forgotten_and_the_network_keeps_its_mode():
    images = EXAMPLES["padded"].images(9)
    found = compressed("padded", 0.0, 0.4)
    model, graph, _ = example("padded")
    found.model.train()
    prices = cost_of(model, graph).input_prices(found.levels)
    attach_per_input_policy_(found.model, images, model(images), prices=prices, hidden=(4,), largest=0.9)
    gates = gates_of(found.model)
    assert [gates.gate_for(site.group).pooled for site in gates.sites] == [None] * len(gates.sites)
    assert found.model.training
    batch_norms = [one for one in found.model.modules() if isinstance(one, torch.nn.BatchNorm2d)]
    assert not any(int(one.num_batches_tracked) for one in batch_norms)  # it was evaluated all the same


def test_what_is_typical_is_what_the_images_show_to_the_gates_of_the_plan():
    images = EXAMPLES["residual"].images(40)
    plain = compressed("residual", 0.0, 0.4, "least-squares").model
    seen = []
    (site,) = gates_of(plain).sites
    plain.get_submodule(site.writer).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    plain(images)
    pooled = seen[0].mean((2, 3))
    ratios = installed("residual", images, static=0.0)[1]
    typical, scores = ratios.typical_at(0), gates_of(plain).gate_for(site.group).scores(pooled)
    assert (scores > typical.threshold).sum() == site.executed * len(images)
    at_par = typical.summary(pooled.mean(0, keepdim=True), scores.mean(0, keepdim=True))[0]
    centred = {"level", "energy", "difficulty"}  # they are linear, so the mean image shows their means
    for name in centred:
        assert float(at_par[InputSummary._fields.index(name)]) == pytest.approx(0.5, abs=1e-3)
    far = typical.summary(pooled.mean(0, keepdim=True) + 3 * pooled.std(0), scores.mean(0, keepdim=True))[0]
    assert float(far[InputSummary._fields.index("energy")]) > 0.9


def test_the_inputs_that_come_out_farther_from_the_dense_network_look_harder():
    images = EXAMPLES["concat"].images(300)
    model, ratios = installed("concat", images)
    seen = []
    ratios.policy.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    wanted, found = (net(images).double().softmax(1) for net in (example("concat")[0], model))
    lost = (wanted * (wanted / found).log()).sum(1).log()
    for features in seen:
        difficulty = features[:, FEATURES.index("difficulty")].double()
        assert torch.corrcoef(torch.stack([difficulty, lost]))[0, 1] > 0.2
