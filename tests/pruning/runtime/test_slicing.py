import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prunegym.pruning.calibration.statistics import calibrate, real_images
from prunegym.pruning.graph import find_groups
from prunegym.pruning.method import Method
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.runtime import slicing
from prunegym.pruning.runtime.gates import GateSite, RuntimeGates, attach_gates_, gates_of
from prunegym.pruning.runtime.per_input import find_per_input_policy
from prunegym.pruning.runtime.slicing import deployed
from tests.pruning.example_networks import EXAMPLES, randomised
from tests.pruning.oracles import example, snapshot
from tests.pruning.plans import apply_to, cost_of
from tests.pruning.plans import ratios as decision
from tests.pruning.runtime.test_gates import GATED, compressed
from tests.pruning.runtime.test_per_input import attached, telling_apart


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("compensation", ["none", "least-squares", "distillation"])
@pytest.mark.parametrize("static", [0.0, 0.4])
@pytest.mark.conformance
@pytest.mark.parametrize("name", GATED)
def test_slices_compute_what_masks_do(name, static, compensation):
    found = compressed(name, static, 0.4, compensation)
    assert found.gates
    images = EXAMPLES[name].images(5)
    sliced = deployed(found.model, EXAMPLES[name].input_shape)
    torch.testing.assert_close(sliced(images), found.model(images), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sliced(images[:1]), found.model(images[:1]), rtol=1e-4, atol=1e-4)


@pytest.mark.conformance
@pytest.mark.parametrize("name", GATED)
def test_deploying_leaves_the_network_as_it_is(name):
    model = compressed(name, 0.0, 0.4).model
    images = EXAMPLES[name].images(2)
    before, expected = snapshot(model), model(images)
    deployed(model, EXAMPLES[name].input_shape)(images)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(images), expected)


@pytest.mark.conformance
@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("static", [0.0, 0.3])
def test_the_multiply_adds_of_a_deployed_network_are_those_predicted(name, static):
    model, graph, images = example(name)
    plan = CompressionPlan({g.name: decision(static, 0.0 if g.ungated else 0.4) for g in graph.prunable})
    method = Method(compensation="least-squares")
    found = apply_to(model, graph, plan, calibrate(graph, real_images(model, [images])), method=method)
    network = deployed(found.model, EXAMPLES[name].input_shape)
    counts = []
    for image in EXAMPLES[name].images(3):
        with FlopCounterMode(display=False) as counter:
            network(image[None])
        counts.append(counter.get_total_flops() / 2)
    assert counts == [cost_of(model, graph).price("macs", found.levels)] * 3


@pytest.mark.parametrize("compensation", ["none", "least-squares"])
@pytest.mark.parametrize("static", [0.0, 0.4])
@pytest.mark.conformance
@pytest.mark.parametrize("name", GATED)
def test_slices_compute_what_masks_do_where_each_image_has_its_own_counts(name, static, compensation):
    model, images = compressed(name, static, 0.4, compensation).model, EXAMPLES[name].images(6)
    telling_apart(model, images)
    sliced, expected = deployed(model, EXAMPLES[name].input_shape), model(images)
    torch.testing.assert_close(sliced(images), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sliced(images.flip(0)), expected.flip(0), rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(sliced(images[:1]), expected[:1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sliced(images[1:3]), expected[1:3], rtol=1e-4, atol=1e-4)


@pytest.mark.conformance
@pytest.mark.parametrize("name", GATED)
def test_a_fresh_policy_deploys_to_the_fixed_plan(name):
    model, images = compressed(name, 0.3, 0.4).model, EXAMPLES[name].images(3)
    expected = deployed(model, EXAMPLES[name].input_shape)(images)
    attached(model)
    torch.testing.assert_close(deployed(model, EXAMPLES[name].input_shape)(images), expected)


@pytest.mark.conformance
@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("static", [0.0, 0.3])
def test_each_image_costs_the_multiply_adds_of_its_own_counts(name, static):
    model, graph, images = example(name)
    plan = CompressionPlan({g.name: decision(static, 0.0 if g.ungated else 0.4) for g in graph.prunable})
    method = Method(compensation="least-squares")
    found = apply_to(model, graph, plan, calibrate(graph, real_images(model, [images])), method=method)
    images = EXAMPLES[name].images(5)
    cost = cost_of(model, graph)
    ratios, _ = telling_apart(found.model, images, prices=cost.input_prices(found.levels))
    predicted = ratios.cost() * cost.price("macs", cost.dense)
    network = deployed(found.model, EXAMPLES[name].input_shape)
    counted = []
    for image in images:
        with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mv: matrix_by_vector}) as counter:
            network(image[None])
        counted.append(counter.get_total_flops() / 2)
    np.testing.assert_allclose(counted, predicted, rtol=1e-12)
    assert len(set(counted)) > 1


def matrix_by_vector(matrix_shape, vector_shape, *_, **__):
    return 2 * matrix_shape[0] * matrix_shape[1]


def test_a_deployed_policy_is_a_copy():
    model, images = compressed("padded", 0.0, 0.4).model, EXAMPLES["padded"].images(6)
    ratios, decided = telling_apart(model, images)
    before, expected = snapshot(model), model(images)
    sliced = deployed(model, EXAMPLES["padded"].input_shape)
    sliced(images[:1])
    assert torch.equal(torch.stack(ratios.decided, dim=1), decided)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    find_per_input_policy(gates_of(model)).offset.fill_(-1e3)  # all units
    assert not torch.allclose(model(images), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(sliced(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise"])
def test_without_gates_batch_norms_are_fused_and_batches_stay_whole(name):
    model, _, images = example(name)
    network = deployed(model, EXAMPLES[name].input_shape)
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    torch.testing.assert_close(network(images), model(images), rtol=1e-4, atol=1e-4)
    assert len(network(images)) == len(images)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 0},
        {"dilation": 2},
        {"kernel_size": (1, 3)},
        {"kernel_size": 1, "stride": 2},
        {"kernel_size": 1, "padding": 0},
    ],
)
def test_a_reader_of_many_weights_gives_the_same_as_a_product(monkeypatch, options):
    monkeypatch.setattr(slicing, "MIN_WEIGHTS_FOR_PRODUCT", 1)
    torch.manual_seed(0)
    reader = nn.Conv2d(6, 5, **{"kernel_size": 3, "padding": 1, **options})
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), reader, nn.Flatten()).eval()
    site = GateSite("0", "0", 3, 6, 3, {"0": tuple(range(6))}, {"2": tuple(range(6))})
    gates = RuntimeGates((site,))
    attach_gates_(model, gates)
    for parameter in gates.parameters():
        nn.init.normal_(parameter)
    network, images = deployed(model, (3, 9, 8)), torch.randn(4, 3, 9, 8)
    expected, products = model(images), []
    product = slicing._SlicedLayer._product
    counted = lambda layer, x: products.append(layer) or product(layer, x)  # noqa: E731
    monkeypatch.setattr(slicing._SlicedLayer, "_product", counted)
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)
    assert len(products) == len(images)
    telling_apart(model, images)
    network, expected = deployed(model, (3, 9, 8)), model(images)
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)
    assert len(products) == 2 * len(images)


def test_a_gate_that_runs_everything_is_not_sliced():
    model, images = example("plain")[0], EXAMPLES["plain"].images(2)
    sites = [replace(site, executed=site.units) for site in compressed("plain", 0.0, 0.4).gates]
    gated = copy.deepcopy(model)
    attach_gates_(gated, RuntimeGates(tuple(sites)))
    network = deployed(gated, EXAMPLES["plain"].input_shape)
    assert {type(module) for module in network.network.modules()} == {
        type(module) for module in deployed(model, EXAMPLES["plain"].input_shape).modules()
    }
    torch.testing.assert_close(network(images), model(images), rtol=1e-4, atol=1e-4)


def test_a_gate_that_runs_everything_in_the_plan_is_sliced_where_an_image_may_run_less():
    model, images = copy.deepcopy(example("plain")[0]), EXAMPLES["plain"].images(6)
    sites = [replace(site, executed=site.units) for site in compressed("plain", 0.0, 0.4).gates]
    attach_gates_(model, RuntimeGates(tuple(sites)))
    for gate in gates_of(model).values():
        gate.weight.copy_(torch.randn(gate.weight.shape, generator=torch.Generator().manual_seed(0)))
    telling_apart(model, images)
    sliced = deployed(model, EXAMPLES["plain"].input_shape)
    torch.testing.assert_close(sliced(images), model(images), rtol=1e-4, atol=1e-4)


def test_fills_that_were_trained_count_in_every_reader():
    found = compressed("transposed", 0.0, 0.4)
    generator = torch.Generator().manual_seed(3)
    for parameter in gates_of(found.model).parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    images = EXAMPLES["transposed"].images(8)
    sliced = deployed(found.model, EXAMPLES["transposed"].input_shape)
    torch.testing.assert_close(sliced(images), found.model(images), rtol=1e-4, atol=1e-4)


class Aliased(nn.Module):
    """Modules that go by two names, of which `forward` uses the second."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.body = nn.Sequential(self.conv1, self.bn1, nn.ReLU(), self.conv2, self.bn2, nn.ReLU())
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.last(self.body(x)).mean((2, 3))


@pytest.mark.parametrize(("static", "runtime"), [(0.0, 0.0), (0.4, 0.0), (0.0, 0.5), (0.3, 0.4)])
def test_modules_of_two_names_are_replaced_by_both(static, runtime):
    model = randomised(Aliased()).eval()
    graph, images = find_groups(model, (3, 6, 6)), torch.randn(5, 3, 6, 6)
    calibration = calibrate(graph, real_images(model, [images]))
    decisions = {g.name: decision(static, 0.0 if g.ungated else runtime) for g in graph.prunable}
    found = apply_to(model, graph, CompressionPlan(decisions), calibration)
    assert bool(found.gates) == (runtime > 0)
    sliced = deployed(found.model, (3, 6, 6))
    torch.testing.assert_close(sliced(images), found.model(images), rtol=1e-4, atol=1e-4)


def test_a_transposed_convolution_with_groups_is_no_depthwise_one():
    model = nn.Sequential(nn.ConvTranspose2d(4, 16, 3, groups=4), nn.ReLU(), nn.Conv2d(16, 3, 1)).eval()
    graph, images = find_groups(model, (4, 5, 5)), torch.randn(6, 4, 5, 5)
    calibration = calibrate(graph, real_images(model, [images]))
    (group,) = [group for group in graph.prunable if group.ungated is None]
    found = apply_to(model, graph, CompressionPlan({group.name: decision(0.0, 0.5)}), calibration)
    sliced = deployed(found.model, (4, 5, 5))
    torch.testing.assert_close(sliced(images), found.model(images), rtol=1e-4, atol=1e-4)
