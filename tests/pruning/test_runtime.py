import copy
import json
from dataclasses import replace

import pytest
import torch

from pruning.apply import Method, apply_plan
from pruning.calibration import calibrate, real_images
from pruning.plan import LayerDecision, PruningPlan
from pruning.runtime import GATES, GateSite, attach_gates_, fit_gate, load_gates_, pooled_input
from pruning.surgery import rebuild_
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.oracles import example, silenced_output

DROPPED = Method(compensation="none")
GATED = [name for name in EXAMPLES if any(group.ungated is None for group in example(name)[1].prunable)]


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def compressed(name, static, runtime):
    """A network carried out with the same ratios for every group that takes them."""
    model, graph, images = example(name)
    plan = PruningPlan({g.name: LayerDecision(static, 0.0 if g.ungated else runtime) for g in graph.prunable})
    return apply_plan(model, graph, plan, calibrate(graph, real_images(model, [images])), method=DROPPED)


def kept_units_of(found, name):
    """The units that the cut left of each group, seen by its first writer's outputs."""
    graph = example(name)[1]
    cuts = {one.owner: set(one.kept) for one in found.structure.cuts if one.axis == "out"}
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
    for site in found.gates:
        model.get_submodule(site.writer).register_forward_pre_hook(
            lambda layer, args, group=site.group: seen.update({group: (layer, args[0])})
        )
    model(image)
    chosen = {}
    for site in found.gates:
        gate = getattr(model, GATES)[site.group.replace(".", "/")]
        layer, x = seen[site.group]
        linear = isinstance(layer, torch.nn.Linear)
        dims = range(1, x.dim() - 1) if linear else range(2, x.dim())
        pooled = x.mean(tuple(dims)) if x.dim() > 2 else x
        scores = (gate.weight @ pooled[0] + gate.bias).tolist()
        best = sorted(range(len(scores)), key=lambda unit: -scores[unit])[: site.executed]
        chosen[site.group] = torch.tensor(sorted(best))
    return chosen


@pytest.mark.parametrize("static", [0.0, 0.4])
@pytest.mark.parametrize("name", GATED)
def test_skipping_units_equals_silencing_them_for_each_image(name, static):
    model, graph, images = example(name)
    found = compressed(name, static, 0.4)
    kept = kept_units_of(found, name)
    together = found.model(images)
    for number, image in enumerate(images):
        chosen = chosen_by_hand(found, image[None])
        runs = {group: units[chosen[group]] if group in chosen else units for group, units in kept.items()}
        expected = silenced_output(model, graph, runs, image[None])
        torch.testing.assert_close(together[number : number + 1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", GATED)
class TestEveryGatedExample:
    def test_skips_nothing_when_all_units_run(self, name):
        model, _, images = example(name)
        sites = [replace(site, executed=site.units) for site in compressed(name, 0.0, 0.4).gates]
        assert sites
        gated = copy.deepcopy(model)
        attach_gates_(gated, sites)
        for gate in getattr(gated, GATES).values():
            torch.nn.init.normal_(gate.weight)
        assert torch.equal(gated(images), model(images))

    def test_runs_as_many_units_as_asked_for_every_image(self, name):
        found = compressed(name, 0.0, 0.4)
        found.model(example(name)[2])
        for site in found.gates:
            mask = getattr(found.model, GATES)[site.group.replace(".", "/")].mask
            assert site.executed < site.units
            assert mask.shape == (3, site.units + 1)
            assert mask[:, :-1].sum(1).tolist() == [site.executed] * 3

    def test_is_rebuilt_from_json_and_weights(self, name):
        _, graph, images = example(name)
        found = compressed(name, 0.3, 0.4)
        sites = [GateSite.from_dict(json.loads(json.dumps(site.to_dict()))) for site in found.gates]
        assert tuple(sites) == found.gates
        needed = graph if found.structure.form == "graph" else None
        again = rebuild_(EXAMPLES[name].model(seed=9), needed, found.structure).eval()
        attach_gates_(again, sites)
        again.load_state_dict(found.model.state_dict(), strict=True)
        assert torch.equal(again(images), found.model(images))

    def test_survives_a_copy(self, name):
        images = example(name)[2]
        found = compressed(name, 0.0, 0.4)
        expected = found.model(images)
        twin = copy.deepcopy(found.model)
        for gate in getattr(twin, GATES).values():
            gate.bias.fill_(0.0)
            gate.bias[0] = 1e6  # only the twin's choice changes
        twin(images)
        assert torch.equal(found.model(images), expected)


def test_places_after_a_cut_by_hand():
    model, graph, images = example("concat")
    inputs = {"c.0": (0, 2, 3, 6, 7, 10), "b.0": (0, 2, 3)}  # of a.0 units 0, 2, 3; of b.0 units 1, 2, 5
    kept, found = torch.tensor([1, 2, 5]), calibrate(graph, real_images(model, [images]))
    site = fit_gate(model, graph.group("b.0"), kept, 2, inputs, found).site
    assert site.places == {
        "c.0": (-1, -1, -1, 0, 1, 2),
        "head.2": (*[-1] * 6, 0, 1, -1, -1, 2, -1, *[-1] * 6),
    }
    assert (site.inputs, site.units, site.executed, site.writer) == (3, 3, 2, "b.0")


@pytest.mark.parametrize(
    ("name", "group"),
    [("grouped", "stem.0"), ("plain", "1.0"), ("transposed", "down.0"), ("tokens", "conv.0")],
)
def test_a_gate_predicts_what_its_units_send_to_their_readers(name, group):
    model, graph, _ = example(name)
    images = EXAMPLES[name].images(12)
    member = graph.group(group).readers[0]
    reader, seen = model.get_submodule(member.owner), []
    handle = reader.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(images)
    handle.remove()
    x = seen[0] if not isinstance(reader, torch.nn.Linear) or seen[0].dim() == 2 else seen[0].movedim(-1, 1)
    strength = x.flatten(2).square().mean(2).sqrt() if x.dim() > 2 else x.abs()
    norms = torch.stack([input_norm(reader, channel) for channel in range(x.size(1))])
    importance = torch.stack([(strength * norms)[:, list(unit)].sum(1) for unit in member.channels], dim=1)
    units = graph.group(group).units
    calibration = calibrate(graph, real_images(model, [images]))
    gate = fit_gate(model, graph.group(group), torch.arange(units), 1, {}, calibration)
    predicted = calibration.pooled[graph.group(group).layers[0]] @ gate.weight.T + gate.bias
    torch.testing.assert_close(predicted.mean(0), importance.mean(0), rtol=1e-3, atol=1e-3)
    residual = (predicted - importance).square().mean()
    assert residual < importance.var(0, correction=0).mean()  # it says more than the mean does


def input_norm(layer, channel):
    """The norm of all weights that look at an input channel."""
    weight = layer.weight.detach()
    if getattr(layer, "transposed", False):
        return weight[channel].norm()
    per_group = weight.size(1)
    rows = weight.unflatten(0, (getattr(layer, "groups", 1), -1))
    return rows[channel // per_group, :, channel % per_group].norm()


def test_fitted_weights_are_loaded_into_the_gate_of_their_group():
    model, graph, images = example("plain")
    model = copy.deepcopy(model)
    calibration = calibrate(graph, real_images(model, [images]))
    gates = [
        fit_gate(model, group, torch.arange(group.units), 2, {}, calibration) for group in graph.prunable
    ]
    attach_gates_(model, [gate.site for gate in gates])
    load_gates_(model, gates)
    state = model.state_dict()
    for gate in gates:
        key = f"runtime_gates.{gate.site.group.replace('.', '/')}"
        assert torch.equal(state[f"{key}.weight"], gate.weight)
        assert torch.equal(state[f"{key}.bias"], gate.bias)


def test_a_network_without_gates_gains_no_submodule():
    model = EXAMPLES["plain"].model()
    attach_gates_(model, [])
    assert not hasattr(model, GATES)


def test_a_layers_input_is_pooled_over_its_places():
    x = torch.arange(24.0).view(2, 3, 2, 2)
    assert pooled_input(torch.nn.Conv2d(3, 1, 1), x).tolist() == [[1.5, 5.5, 9.5], [13.5, 17.5, 21.5]]
    assert torch.equal(pooled_input(torch.nn.Linear(3, 1), x.movedim(1, -1)), x.mean((2, 3)))
    assert torch.equal(pooled_input(torch.nn.Linear(3, 1), x[:, :, 0, 0]), x[:, :, 0, 0])
