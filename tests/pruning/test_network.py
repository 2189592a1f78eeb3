import pytest
import torch

from prunegym.pruning.calibration.statistics import real_images
from prunegym.pruning.criteria import CRITERIA
from prunegym.pruning.errors import (
    DataError,
    PlanError,
    UnknownNameError,
    UntraceableModelError,
    WeightsError,
)
from prunegym.pruning.method import Method
from prunegym.pruning.network import CURVE_RATIOS, PrunableNetwork
from prunegym.pruning.plan import CompressionPlan
from tests.pruning.example_networks import EXAMPLES, Branching
from tests.pruning.oracles import assert_untouched, counted_params, snapshot
from tests.pruning.plans import ratios


def network(name="residual", **settings):
    chosen = EXAMPLES[name]
    model = chosen.model()
    return PrunableNetwork(model, real_images(model, [chosen.images(8)]), **settings)


def test_plans_are_carried_out_on_copies():
    prunable = network("projected")
    before = snapshot(prunable.model)
    halves = CompressionPlan({group.name: ratios(0.5) for group in prunable.graph.prunable})
    small = prunable.apply(halves)
    assert (
        counted_params(small.model)
        == prunable.cost.price("params", small.levels)
        < counted_params(prunable.model)
    )
    assert_untouched(prunable.model, before)


@pytest.mark.parametrize("compensation", ["none", "least-squares"])
def test_prices_know_the_biases_that_a_compensation_adds(compensation):
    prunable = network("bias-free", method=Method(compensation=compensation))
    small = prunable.apply(CompressionPlan({"0.0": ratios(0.5)}))
    assert counted_params(small.model) == prunable.cost.price("params", small.levels)


def test_units_are_scored_once_however_many_plans_are_carried_out(monkeypatch):
    scored = []

    def counted(model, group, calibration):
        scored.append(group.name)
        return torch.arange(group.units, dtype=torch.float64)

    monkeypatch.setitem(CRITERIA._entries, "counted", counted)
    prunable = network("projected", method=Method(criterion="counted"))
    assert prunable.error_curves
    for ratio in (0.3, 0.5):
        prunable.apply(CompressionPlan({"conv1": ratios(ratio)}))
    assert scored == [group.name for group in prunable.graph.prunable]


def test_there_is_one_curve_for_each_group_and_one_loss_for_each_ratio():
    prunable = network("projected")
    curves = prunable.error_curves
    assert len(curves) == len(prunable.graph.prunable)
    assert all(len(curve) == len(CURVE_RATIOS) for curve in curves)
    assert all(0 <= a <= b <= c <= 1 for a, b, c in curves)


def test_the_usual_curves_are_worked_out_once(monkeypatch):
    prunable, measured = network("projected"), []
    monkeypatch.setattr(
        "prunegym.pruning.network.error_curve",
        lambda model, group, *rest, **more: measured.append(group.name),
    )
    assert prunable.error_curves is prunable.error_curves
    assert measured == [group.name for group in prunable.graph.prunable]


def test_a_curve_is_known_at_any_ratios():
    prunable = network("projected")
    ratios = (0.0, 0.25, 0.4, 0.75)
    for usual, asked in zip(prunable.error_curves, prunable.error_curves_at(ratios), strict=True):
        assert len(asked) == len(ratios)
        assert asked[0] == pytest.approx(0.0, abs=1e-9)
        assert (asked[1], asked[3]) == (usual[0], usual[2])
        assert list(asked) == sorted(asked)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"method": Method(criterion="nothing")}, UnknownNameError),
        ({"method": Method(compensation="nothing")}, UnknownNameError),
        ({"only": ["nothing"]}, UnknownNameError),
        ({"protect": ["*"]}, PlanError),
    ],
)
def test_what_makes_no_sense_is_refused(settings, error):
    with pytest.raises(error) as caught:
        network(**settings)
    assert "\n" not in str(caught.value)


def test_a_network_that_cannot_be_traced_is_refused():
    model = Branching()
    calibration = real_images(model, [torch.randn(2, 3, 6, 6)])
    with pytest.raises(UntraceableModelError):
        PrunableNetwork(model, calibration)


def test_without_calibration_images_there_is_no_network():
    with pytest.raises(DataError):
        real_images(EXAMPLES["residual"].model(), [])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("tensor", ["a.0.weight", "b.1.running_mean"])
def test_a_weight_or_statistic_that_is_not_finite_is_named(tensor, value):
    model = EXAMPLES["residual"].model()
    model.state_dict()[tensor].view(-1)[0] = value
    with pytest.raises(WeightsError, match=f"{tensor} holds NaN or infinity"):
        PrunableNetwork(model, real_images(model, [EXAMPLES["residual"].images()]))


def test_a_network_without_values_is_refused():
    example = EXAMPLES["residual"]
    calibration = real_images(example.model(), [example.images(4)])
    with pytest.raises(WeightsError, match="is on the meta device and has no values"):
        PrunableNetwork(example.model().to("meta"), calibration)
