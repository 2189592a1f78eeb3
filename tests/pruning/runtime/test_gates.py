import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from prunegym.pruning.apply import rebuild_
from prunegym.pruning.calibration.statistics import calibrate, real_images
from prunegym.pruning.method import Method
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.runtime.gates import (
    GATES,
    GateSite,
    RuntimeGate,
    RuntimeGates,
    as_key,
    attach_gates_,
    constant_response,
    detach_gates_,
    gates_of,
    pooled_input,
)
from prunegym.pruning.storage.compressed import records_of
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.oracles import affordable, example, silenced_output
from tests.pruning.plans import apply_to
from tests.pruning.plans import ratios as decision

GATED = [name for name in EXAMPLES if any(group.ungated is None for group in example(name)[1].prunable)]


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def compressed(name, static, runtime, compensation="none"):
    """A network carried out with the same ratios for every group that takes them."""
    model, graph, images = example(name)
    plan = CompressionPlan({g.name: decision(static, 0.0 if g.ungated else runtime) for g in graph.prunable})
    calibration = calibrate(graph, real_images(model, [images]))
    with affordable(name, compensation):
        return apply_to(model, graph, plan, calibration, method=Method(compensation=compensation))


def without_fills(found):
    for gate in gates_of(found.model).values():
        for fill in gate.fill.values():
            fill.zero_()
    return found


def kept_units_of(found, name):
    """The units that the cut left of each group, seen by its first writer's outputs."""
    graph = example(name)[1]
    cuts = {
        one["owner"]: set(one["kept"]) for one in found.records["channels"]["cuts"] if one["axis"] == "out"
    }
    kept = {}
    for group in graph.prunable:
        writer = group.writers[0]
        stays = cuts.get(writer.owner)
        units = [u for u in range(group.units) if stays is None or set(writer.channels[u]) <= stays]
        kept[group.name] = torch.tensor(units)
    return kept


def chosen_by_hand(found, image):
    """Group -> survivors that its gate should choose, from what its writer is seen to read."""
    seen, model = {}, found.model
    handles = [
        model.get_submodule(site.writer).register_forward_pre_hook(
            lambda layer, args, group=site.group: seen.update({group: (layer, args[0])})
        )
        for site in found.gates
    ]
    model(image)
    for handle in handles:
        handle.remove()
    chosen = {}
    for site in found.gates:
        gate = gates_of(model).gate_for(site.group)
        layer, x = seen[site.group]
        linear = isinstance(layer, nn.Linear)
        dims = range(1, x.dim() - 1) if linear else range(2, x.dim())
        pooled = x.mean(tuple(dims)) if x.dim() > 2 else x
        scores = (gate.weight @ pooled[0] + gate.bias).tolist()
        best = sorted(range(len(scores)), key=lambda unit: -scores[unit])[: site.executed]
        chosen[site.group] = torch.tensor(sorted(best))
    return chosen


@pytest.mark.parametrize("static", [0.0, 0.4])
@pytest.mark.conformance
@pytest.mark.parametrize("name", GATED)
def test_skipping_units_equals_silencing_them_for_each_image(name, static):
    model, graph, images = example(name)
    found = without_fills(compressed(name, static, 0.4))
    kept = kept_units_of(found, name)
    together = found.model(images)
    for number, image in enumerate(images):
        chosen = chosen_by_hand(found, image[None])
        runs = {group: units[chosen[group]] if group in chosen else units for group, units in kept.items()}
        expected = silenced_output(model, graph, runs, image[None])
        torch.testing.assert_close(together[number : number + 1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.conformance
@pytest.mark.parametrize("name", GATED)
class TestEveryGatedExample:
    def test_skips_nothing_when_all_units_run(self, name):
        model, _, images = example(name)
        sites = [replace(site, executed=site.units) for site in compressed(name, 0.0, 0.4).gates]
        assert sites
        gated, gates = copy.deepcopy(model), RuntimeGates(tuple(sites))
        attach_gates_(gated, gates)
        for parameter in gates.parameters():
            torch.nn.init.normal_(parameter)
        assert torch.equal(gated(images), model(images))

    def test_runs_as_many_units_as_asked_for_every_image(self, name):
        found = compressed(name, 0.0, 0.4)
        found.model(example(name)[2])
        for site in found.gates:
            mask = gates_of(found.model).gate_for(site.group).mask
            assert site.executed < site.units
            assert mask.shape == (3, site.units)
            assert mask.sum(1).tolist() == [site.executed] * 3

    def test_is_rebuilt_from_json_and_weights(self, name):
        _, graph, images = example(name)
        found = compressed(name, 0.3, 0.4, "least-squares")
        sites = tuple(GateSite.from_dict(json.loads(json.dumps(site.to_dict()))) for site in found.gates)
        assert sites == found.gates
        records = json.loads(json.dumps(records_of(found)))
        again = rebuild_(EXAMPLES[name].model(seed=9), graph.input_shape, records, found.biases).eval()
        again.load_state_dict(found.model.state_dict(), strict=True)
        assert torch.equal(again(images), found.model(images))

    def test_survives_a_copy(self, name):
        images = example(name)[2]
        found = compressed(name, 0.0, 0.4)
        expected = found.model(images)
        twin = copy.deepcopy(found.model)
        for gate in gates_of(twin).values():
            gate.bias.fill_(0.0)
            gate.bias[0] = 1e6  # only the twin's choice changes
        twin(images)
        assert torch.equal(found.model(images), expected)

    def test_is_taken_away_again(self, name):
        model, _, images = example(name)
        gated = compressed(name, 0.0, 0.4, "none").model
        assert name == "unused-head" or not torch.equal(gated(images), model(images))
        detach_gates_(gated)
        assert gates_of(gated) is None
        assert torch.equal(gated(images), model(images))


def gate_of(units=4, inputs=3, executed=2, readers=None):
    readers = readers or {"r": tuple(range(units))}
    return RuntimeGate(GateSite("g", "w", inputs, units, executed, {"w": tuple(range(units))}, readers))


def test_a_skipped_channel_counts_as_its_fill():
    writer, reader = (
        nn.Conv2d(2, 4, 1),
        nn.Conv2d(4, 3, 3, bias=False),
    )  # no border: a constant is one everywhere
    model = nn.Sequential(writer, reader)
    x = torch.randn(5, 2, 6, 6)
    site = GateSite("0", "0", 2, 4, 2, {"0": (0, 1, 2, 3)}, {"1": (0, 1, 2, 3)})
    gates = RuntimeGates((site,))
    attach_gates_(model, gates)
    gate = gates.gate_for("0")
    gate.weight.normal_()
    gate.fill[as_key("1")].copy_(torch.tensor([1.0, -2.0, 3.0, 0.5]))
    found, mask = model(x), gate.mask[:, :, None, None]
    y = writer.weight.flatten(1) @ x.flatten(2) + writer.bias[:, None]
    filled = mask * y.view(5, 4, 6, 6) + (1 - mask) * gate.fill[as_key("1")].view(1, 4, 1, 1)
    torch.testing.assert_close(found, nn.functional.conv2d(filled, reader.weight))


def test_a_gate_decides_by_what_earlier_gates_let_through():
    layers = [nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)]
    model, x = nn.Sequential(*layers), torch.randn(6, 3)
    sites = (
        GateSite("0", "0", 3, 4, 2, {"0": (0, 1, 2, 3)}, {"1": (0, 1, 2, 3)}),
        GateSite("1", "1", 4, 5, 2, {"1": (0, 1, 2, 3, 4)}, {"2": (0, 1, 2, 3, 4)}),
    )
    gates = RuntimeGates(sites)
    attach_gates_(model, gates)
    for parameter in gates.parameters():
        parameter.normal_()
    model(x)
    first, second = gates.gate_for("0"), gates.gate_for("1")
    hidden = torch.where(first.mask > 0, x @ layers[0].weight.T + layers[0].bias, first.fill[as_key("1")])
    scores = hidden @ second.weight.T + second.bias
    best = scores.argsort(dim=1, descending=True)[:, :2]
    assert torch.equal(second.mask, torch.zeros(6, 5).scatter(1, best, 1.0))


def test_its_gradient_is_that_of_a_sigmoid_between_the_last_that_runs_and_the_first_that_does_not():
    gate = gate_of()
    gate.bias.copy_(torch.tensor([0.4, -1.0, 0.1, 0.3]))
    with torch.enable_grad():
        mask = gate(torch.zeros(1, 3))
        mask[0, 3].backward()
    assert mask.round().tolist() == [[1, 0, 0, 1]]
    threshold, spread = (0.3 + 0.1) / 2, gate.bias.detach().std()
    soft = torch.sigmoid(2 * (torch.tensor(0.3) - threshold) / spread)
    slope = 2 / spread * soft * (1 - soft)  # of the score itself; the threshold moves with both
    torch.testing.assert_close(gate.bias.grad, torch.tensor([0, 0, -slope / 2, slope / 2]))


def test_a_constant_gives_what_a_layer_gives_for_it():
    for layer in (nn.Conv2d(6, 4, 3, groups=2, bias=False), nn.Conv1d(6, 4, 3, bias=False)):
        values = torch.randn(2, 6)
        shape = (2, 6, *[5] * (layer.weight.dim() - 2))
        everywhere = values.view(2, 6, *[1] * (len(shape) - 2)).expand(shape)
        expected = layer(everywhere).flatten(2)[:, :, 0]
        torch.testing.assert_close(constant_response(layer, values), expected)
    linear = nn.Linear(6, 4, bias=False)
    torch.testing.assert_close(constant_response(linear, values), linear(values))


def test_a_network_without_gates_gains_no_submodule():
    model = EXAMPLES["plain"].model()
    attach_gates_(model, RuntimeGates(()))
    assert not hasattr(model, GATES)
    assert gates_of(model) is None


def test_a_layers_input_is_pooled_over_its_places():
    x = torch.arange(24.0).view(2, 3, 2, 2)
    assert pooled_input(torch.nn.Conv2d(3, 1, 1), x).tolist() == [[1.5, 5.5, 9.5], [13.5, 17.5, 21.5]]
    assert torch.equal(pooled_input(torch.nn.Linear(3, 1), x.movedim(1, -1)), x.mean((2, 3)))
    assert torch.equal(pooled_input(torch.nn.Linear(3, 1), x[:, :, 0, 0]), x[:, :, 0, 0])


def test_scores_that_are_all_alike_give_a_finite_gradient():
    gate = gate_of()
    with torch.enable_grad():
        gate(torch.zeros(2, 3)).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in (gate.weight, gate.bias))


@pytest.mark.parametrize("name", ["values", "of", "sites", "pop"])
def test_a_layer_may_have_any_name(name):
    model = nn.Module()
    model.add_module(name, nn.Linear(3, 4))
    model.add_module("items", nn.Linear(4, 2))
    places = {"items": (0, 1, 2, 3)}
    gates = RuntimeGates((GateSite(name, name, 3, 4, 2, {name: (0, 1, 2, 3)}, places),))
    attach_gates_(model, gates)
    assert gates_of(model).gate_for(name).executed == 2
    assert gates_of(model).gate_for(name).fill[as_key("items")].shape == (4,)


def test_gates_take_the_networks_dtype():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    gates = RuntimeGates((GateSite("0", "0", 3, 4, 2, {"0": (0, 1, 2, 3)}, {"1": (0, 1, 2, 3)}),))
    attach_gates_(model, gates)
    assert model(torch.randn(5, 3, dtype=torch.float64)).dtype == torch.float64


def test_images_in_flight_are_forgotten():
    found = compressed("plain", 0.0, 0.4, "distillation")
    gates = gates_of(found.model)
    assert [gates.gate_for(site.group).mask for site in found.gates] == [None, None]
    found.model(example("plain")[2])
    gates.forget()
    assert [gates.gate_for(site.group).pooled for site in found.gates] == [None, None]
