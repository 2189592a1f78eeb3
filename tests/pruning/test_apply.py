import copy

import pytest
import torch

from prunegym.pruning.apply import rebuild_
from prunegym.pruning.calibration.statistics import calibrate, real_images
from prunegym.pruning.compensation import COMPENSATIONS
from prunegym.pruning.errors import PlanError, PruningError, UnknownNameError
from prunegym.pruning.method import Method
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.runtime.gates import gates_of
from prunegym.pruning.surgery.cutting import AxisCut, Structure
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.oracles import (
    affordable,
    assert_untouched,
    counted_params,
    example,
    silenced_output,
    snapshot,
)
from tests.pruning.plans import apply_to, cost_of, even_plan, ratios


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def applied(name, plan, **method):
    model, graph, images = example(name)
    calibration = calibrate(graph, real_images(model, [images]))
    with affordable(name, method.get("compensation", "")):
        return apply_to(model, graph, plan, calibration, method=Method(**method))


@pytest.mark.conformance
@pytest.mark.parametrize("name", list(EXAMPLES))
class TestEveryExample:
    @pytest.mark.parametrize("compensation", list(COMPENSATIONS))
    def test_an_empty_plan_is_the_identity(self, name, compensation):
        model, graph, images = example(name)
        for plan in (CompressionPlan(), even_plan(graph, 0.0)):
            found = applied(name, plan, compensation=compensation)
            assert torch.equal(found.model(images), model(images))
            assert list(found.model.state_dict()) == list(model.state_dict())
            assert found.gates == ()
            assert not found.records["channels"]["cuts"]

    def test_the_input_model_stays_bit_equal(self, name):
        model, graph, _ = example(name)
        before = snapshot(model)
        applied(name, even_plan(graph, 0.4, 0.3))
        assert_untouched(model, before)

    @pytest.mark.parametrize("compensation", list(COMPENSATIONS))
    def test_costs_what_was_predicted(self, name, compensation):
        model, graph, _ = example(name)
        cost = cost_of(model, graph, compensation=compensation)
        found = applied(name, even_plan(graph, 0.4, 0.3), compensation=compensation)
        assert cost.price("params", found.levels) == counted_params(found.model)

    def test_dropping_keeps_the_units_of_largest_weights(self, name):
        model, graph, images = example(name)
        found = applied(name, even_plan(graph, 0.4), compensation="none")
        kept = {}
        for group, count in zip(graph.prunable, found.levels["channels"].tolist(), strict=True):
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
        fresh = EXAMPLES[name].model(seed=3)
        again = rebuild_(fresh, graph.input_shape, found.records, found.biases).eval()
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
            found = apply_to(model, graph, even_plan(graph, 0.4), calibration, method=method)
            errors[compensation] = (found.model(images) - dense).square().mean()
        assert errors["least-squares"] < 0.7 * errors["none"]


def fitted_to(name, images, plan, counts=None):
    """A network whose gates and weights are fitted to these counts of each image."""
    model, graph, _ = example(name)
    calibration = calibrate(graph, real_images(model, [images[:20], images[20:]]))
    return apply_to(model, graph, plan, calibration, counts=counts).model


@pytest.mark.parametrize("name", ["plain", "residual", "concat", "grouped", "padded"])
@pytest.mark.parametrize("compensation", list(COMPENSATIONS))
def test_the_plans_own_counts_for_every_image_are_no_counts(name, compensation):
    model, graph, images = example(name)
    plan, calibration = even_plan(graph, 0.2, 0.4), calibrate(graph, real_images(model, [images]))
    method = Method(compensation=compensation)
    found = apply_to(model, graph, plan, calibration, method=method)
    counts = {site.group: torch.full((len(images),), site.executed) for site in found.gates}
    again = apply_to(model, graph, plan, calibration, method=method, counts=counts)
    assert (again.gates, again.levels["channels"].tolist()) == (
        found.gates,
        found.levels["channels"].tolist(),
    )
    expected = found.model.state_dict()
    assert counts
    assert all(torch.equal(tensor, expected[key]) for key, tensor in again.model.state_dict().items())
    assert torch.equal(again.model(images), found.model(images))  # nor do the counts stay in force


def output_error(name, model, reader, images, counts):
    """What a reader's output lacks of the dense network's, when these units run for each image."""
    outputs = []
    for group, count in counts.items():
        gates_of(model).gate_for(group).count_of = lambda pooled, scores, count=count: count
    for network in (model, example(name)[0]):
        # registered last, so behind the hook that adds the fills
        layer = network.get_submodule(reader)
        handle = layer.register_forward_hook(lambda _, args, output: outputs.append(output))
        network(images)
        handle.remove()
    return float((outputs[0] - outputs[1]).square().mean())


@pytest.mark.parametrize(("name", "group", "reader"), [("plain", "0.0", "1.0"), ("residual", "a.0", "b.0")])
@pytest.mark.parametrize("static", [0.0, 0.2])
@pytest.mark.parametrize("seed", range(3))
def test_readers_are_fitted_to_the_counts_of_each_image(name, group, reader, static, seed):
    images = EXAMPLES[name].images(50)
    plan = CompressionPlan({group: ratios(static, 0.5)})
    (site,) = gates_of(fitted_to(name, images, plan)).sites
    generator = torch.Generator().manual_seed(seed)
    counts = {group: torch.randint(1, site.units + 1, (50,), generator=generator)}
    errors = [
        output_error(name, fitted_to(name, images, plan, given), reader, images, counts)
        for given in (counts, None)
    ]
    assert errors[0] < 0.99 * errors[1]


def test_counts_belong_to_the_images_in_their_order():
    images = EXAMPLES["plain"].images(50)
    images *= torch.arange(1, 51).view(-1, 1, 1, 1) / 25
    plan = CompressionPlan({"0.0": ratios(0.0, 0.5)})
    counts = {"0.0": 1 + torch.arange(50) // 10}  # the stronger the image, the more
    others = {"0.0": counts["0.0"].flip(0)}
    fitted = [fitted_to("plain", images, plan, given) for given in (counts, others)]
    errors = [output_error("plain", model, "1.0", images, counts) for model in fitted]
    assert errors[0] < 0.9 * errors[1]


def test_a_group_without_counts_follows_the_plan():
    images = EXAMPLES["concat"].images(50)
    plan = even_plan(example("concat")[1], 0.0, 0.4)
    first, last = (gates_of(fitted_to("concat", images, plan)).sites[at] for at in (0, -1))
    counts = {last.group: torch.arange(50) % last.units + 1}
    plain, varied = (fitted_to("concat", images, plan, given) for given in (None, counts))
    weights = [gates_of(model).gate_for(first.group).bias for model in (plain, varied)]
    assert torch.equal(*weights)
    assert not torch.equal(plain(images), varied(images))


def test_widths_are_rounded_as_the_method_says():
    found = applied("plain", CompressionPlan({"1.0": ratios(0.4)}), round_to=4)
    assert found.model[1][0].out_channels == found.levels["channels"][1] == 4


def test_a_model_in_training_mode_stays_in_it():
    model, graph, images = example("view-constant")
    model = copy.deepcopy(model).train()
    found = apply_to(model, graph, even_plan(graph, 0.5), calibrate(graph, real_images(model, [images])))
    assert found.model.training
    assert model.training


def test_a_gained_bias_is_rebuilt():
    cuts = (AxisCut("1.0", "out", (0, 2)), AxisCut("2.2", "in", (0, 2)))
    records, model = {"channels": Structure(cuts).to_dict()}, EXAMPLES["bias-free"].model()
    again = rebuild_(model, EXAMPLES["bias-free"].input_shape, records, ("1.0",))
    assert again[1][0].bias.shape == (2,)
    assert again[0][0].bias is None


@pytest.mark.parametrize("name", ["nowhere", "0.2"])
def test_a_bias_of_another_network_is_refused_in_one_line(name):
    with pytest.raises(PruningError, match="recorded biases do not fit Sequential") as caught:
        rebuild_(EXAMPLES["plain"].model(), EXAMPLES["plain"].input_shape, {}, (name,))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("plan", "method", "error"),
    [
        ({"nowhere": ratios(0.5)}, {}, UnknownNameError),
        ({"2.2": ratios(0.5)}, {}, PlanError),
        ({}, {"criterion": "l3"}, UnknownNameError),
        ({}, {"compensation": "least-square"}, UnknownNameError),
    ],
)
def test_what_does_not_exist_is_refused_in_one_line(plan, method, error):
    with pytest.raises(error) as caught:
        applied("plain", CompressionPlan(plan), **method)
    assert "\n" not in str(caught.value)
