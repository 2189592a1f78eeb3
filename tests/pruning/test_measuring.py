import pytest
import torch

import pruning.measuring
from pruning.calibration import real_images
from pruning.data import Images
from pruning.measuring import measure_rows
from pruning.plan import LayerDecision, PruningPlan
from pruning.prunable import PrunableNetwork
from pruning.runtime.slicing import OneByOne
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.oracles import counted_macs, counted_params


@pytest.fixture
def rows(monkeypatch):
    timed = []

    def fake(models, input_shape, *, device):
        timed.append((dict(models), tuple(input_shape), device))
        return {name: float(number) for number, name in enumerate(models)}

    monkeypatch.setattr(pruning.measuring, "measure_latency", fake)
    chosen = EXAMPLES["residual"]
    model = chosen.model()
    network = PrunableNetwork(model, real_images(model, [chosen.images(8)]))
    images = chosen.images(10)
    with torch.no_grad():
        labels = network.model(images).argmax(1)
    labels[0] = (labels[0] + 1) % 5
    plans = {
        "dense": PruningPlan(),
        "cut": PruningPlan({"a.0": LayerDecision(0.5)}),
        "gated": PruningPlan({"a.0": LayerDecision(0.5, 0.5)}),
    }
    found = measure_rows(network, plans, Images(images, labels))
    return found, timed, images


def test_each_network_is_measured_on_all_images(rows):
    found, _, _ = rows
    assert list(found.evaluations) == ["dense", "cut", "gated"]
    assert found.evaluations["dense"].accuracy == pytest.approx(0.9)  # of the ten labels one was changed


def test_the_costs_are_those_counted(rows):
    found, _, images = rows
    for name in ("dense", "cut"):
        model, row = found.compressed[name].model, found.evaluations[name]
        assert (row.macs, row.params) == (counted_macs(model, images[0]), counted_params(model))
    assert found.evaluations["gated"].macs < found.evaluations["cut"].macs
    assert found.evaluations["gated"].params > found.evaluations["cut"].params


def test_the_gated_groups_are_counted(rows):
    assert rows[0].gated == {"dense": 0, "cut": 0, "gated": 1}


def test_latencies_are_measured_side_by_side_in_one_run(rows):
    found, timed, _ = rows
    ((models, shape, device),) = timed
    assert (list(models), shape, device) == (["dense", "cut", "gated"], (3, 6, 6), "cpu")
    assert [row.latency_ms for row in found.evaluations.values()] == [0.0, 1.0, 2.0]


def test_what_is_timed_is_the_deployed_form(rows):
    found, timed, images = rows
    models = timed[0][0]
    for name, model in models.items():
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
        with torch.no_grad():
            torch.testing.assert_close(model(images), found.compressed[name].model(images))
    assert isinstance(models["gated"], OneByOne)
