import copy

import pytest
import torch

from pruning.apply import Method, apply_plan
from pruning.calibration import calibrate, real_images
from pruning.compensation import COMPENSATIONS
from pruning.cost import CostModel
from pruning.errors import PlanError, UnknownNameError
from pruning.plan import LayerDecision, PruningPlan
from pruning.surgery import rebuild_
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.oracles import (
    assert_untouched,
    counted_bytes,
    counted_params,
    example,
    silenced_output,
    snapshot,
)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def even_plan(graph, static, runtime=0.0):
    return PruningPlan({g.name: LayerDecision(static, 0.0 if g.ungated else runtime) for g in graph.prunable})


def applied(name, plan, **method):
    model, graph, images = example(name)
    return apply_plan(
        model, graph, plan, calibrate(graph, real_images(model, [images])), method=Method(**method)
    )


@pytest.mark.parametrize("name", list(EXAMPLES))
class TestEveryExample:
    @pytest.mark.parametrize("compensation", list(COMPENSATIONS))
    def test_an_empty_plan_is_the_identity(self, name, compensation):
        model, graph, images = example(name)
        for plan in (PruningPlan(), even_plan(graph, 0.0)):
            found = applied(name, plan, compensation=compensation)
            assert torch.equal(found.model(images), model(images))
            assert list(found.model.state_dict()) == list(model.state_dict())
            assert found.gates == ()
            assert found.structure.cuts == ()

    def test_the_input_model_stays_bit_equal(self, name):
        model, graph, _ = example(name)
        before = snapshot(model)
        applied(name, even_plan(graph, 0.4, 0.3))
        assert_untouched(model, before)

    @pytest.mark.parametrize("compensation", list(COMPENSATIONS))
    def test_costs_what_was_predicted(self, name, compensation):
        model, graph, _ = example(name)
        cost = CostModel(graph, model, shifts_bias=COMPENSATIONS[compensation].shifts_bias)
        found = applied(name, even_plan(graph, 0.4, 0.3), compensation=compensation)
        assert cost.params(found.widths) == counted_params(found.model)
        assert cost.bytes(found.widths) == counted_bytes(found.model)

    def test_dropping_keeps_the_units_of_largest_weights(self, name):
        model, graph, images = example(name)
        found = applied(name, even_plan(graph, 0.4), compensation="none")
        kept = {}
        for group, count in zip(graph.prunable, found.widths.kept.tolist(), strict=True):
            weight = [0.0] * group.units
            for member in group.writers:
                layer = model.get_submodule(member.owner)
                for unit, channels in enumerate(member.channels):
                    weight[unit] += sum(magnitude(layer, channel) for channel in channels)
            best = sorted(range(group.units), key=lambda unit: -weight[unit])[:count]
            kept[group.name] = torch.tensor(sorted(best))
        expected = silenced_output(model, graph, kept, images)
        torch.testing.assert_close(found.model(images), expected, rtol=1e-4, atol=1e-4)

    def test_is_rebuilt_with_the_biases_it_gained(self, name):
        _, graph, images = example(name)
        found = applied(name, even_plan(graph, 0.4))
        needed = graph if found.structure.form == "graph" else None
        again = rebuild_(EXAMPLES[name].model(seed=3), needed, found.structure).eval()
        again.load_state_dict(found.model.state_dict(), strict=True)
        assert torch.equal(again(images), found.model(images))


def magnitude(layer, channel):
    weight = layer.weight
    if getattr(layer, "transposed", False):
        group, place = divmod(channel, weight.size(1))
        return float(weight.unflatten(0, (layer.groups, -1))[group, :, place].abs().sum())
    return float(weight[channel].abs().sum())


def test_least_squares_beats_dropping_on_the_calibration_images():
    for name in ("plain", "residual", "padded"):
        model, graph, _ = example(name)
        images = EXAMPLES[name].images(64)
        calibration, dense = calibrate(graph, real_images(model, [images])), model(images)
        errors = {}
        for compensation in ("none", "least-squares"):
            method = Method(compensation=compensation)
            found = apply_plan(model, graph, even_plan(graph, 0.4), calibration, method=method)
            errors[compensation] = (found.model(images) - dense).square().mean()
        assert errors["least-squares"] < 0.7 * errors["none"]


def test_widths_are_rounded_as_the_method_says():
    found = applied("plain", PruningPlan({"1.0": LayerDecision(0.4)}), round_to=4)
    assert found.model[1][0].out_channels == found.widths.kept[1] == 4


def test_a_model_in_training_mode_stays_in_it():
    model, graph, images = example("view-constant")
    model = copy.deepcopy(model).train()
    found = apply_plan(model, graph, even_plan(graph, 0.5), calibrate(graph, real_images(model, [images])))
    assert found.model.training
    assert model.training


@pytest.mark.parametrize(
    ("plan", "method", "error"),
    [
        ({"nowhere": LayerDecision(0.5)}, {}, UnknownNameError),
        ({"2.2": LayerDecision(0.5)}, {}, PlanError),
        ({}, {"criterion": "l3"}, UnknownNameError),
        ({}, {"compensation": "least-square"}, UnknownNameError),
    ],
)
def test_what_does_not_exist_is_refused_in_one_line(plan, method, error):
    with pytest.raises(error) as caught:
        applied("plain", PruningPlan(plan), **method)
    assert "\n" not in str(caught.value)
