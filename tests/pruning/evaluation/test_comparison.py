import pytest
import torch

import prunegym.pruning.evaluation.comparison
from prunegym.pruning.calibration.statistics import real_images
from prunegym.pruning.data import Images
from prunegym.pruning.evaluation.comparison import measure_rows, measure_side_by_side, typical_image
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.runtime.gates import gates_of
from prunegym.pruning.runtime.per_input import PER_INPUT, PerInputPolicy
from prunegym.pruning.runtime.slicing import OneByOne
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.oracles import counted_macs, counted_params, example
from tests.pruning.plans import cost_of, ratios
from tests.pruning.runtime.test_gates import compressed
from tests.pruning.runtime.test_per_input import telling_apart


@pytest.fixture
def rows(monkeypatch):
    timed = []

    def fake(models, image):
        timed.append((dict(models), image))
        return {name: float(number) for number, name in enumerate(models)}

    monkeypatch.setattr(prunegym.pruning.evaluation.comparison, "measure_latency", fake)
    chosen = EXAMPLES["residual"]
    model = chosen.model()
    network = PrunableNetwork(model, real_images(model, [chosen.images(8)]))
    images = chosen.images(10)
    with torch.no_grad():
        labels = network.model(images).argmax(1)
    labels[0] = (labels[0] + 1) % 5
    plans = {
        "dense": CompressionPlan(),
        "cut": CompressionPlan({"a.0": ratios(0.5)}),
        "gated": CompressionPlan({"a.0": ratios(0.5, 0.5)}),
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
    found, timed, images = rows
    ((models, image),) = timed
    assert list(models) == ["dense", "cut", "gated"]
    assert torch.equal(image, images[:1])
    assert [row.latency_ms for row in found.evaluations.values()] == [0.0, 1.0, 2.0]


def test_what_is_timed_is_the_deployed_form(rows):
    found, timed, images = rows
    models = timed[0][0]
    for name, model in models.items():
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
        with torch.no_grad():
            torch.testing.assert_close(model(images), found.compressed[name].model(images))
    assert isinstance(models["gated"], OneByOne)


def deciding(images):
    """(what came of a network that decides for each input, the multiply-adds of each image)"""
    model, graph, _ = example("padded")
    found = compressed("padded", 0.0, 0.4)
    prices = cost_of(model, graph).input_prices(found.levels)
    with torch.no_grad():
        _, counts = telling_apart(found.model, images, prices=prices)
    return found, prices.macs(counts.numpy())


def test_latency_is_that_of_an_image_of_usual_cost():
    images = EXAMPLES["padded"].images(40)
    found, macs = deciding(images)
    usual = min(range(40), key=lambda number: abs(macs[number] - sum(macs) / 40))
    assert macs[usual] != macs[0]
    image = typical_image([EXAMPLES["padded"].model(), found.model], Images(images, torch.zeros(40)))
    assert image.shape == (1, 3, 8, 8)
    with torch.no_grad():
        found.model(image)
    (ratios,) = (one for one in found.model.modules() if isinstance(one, PerInputPolicy))
    assert ratios.prices.macs(torch.stack(ratios.decided, dim=1).numpy()) == macs[usual]


def test_the_first_network_that_decides_says_which_image_is_usual():
    images = EXAMPLES["padded"].images(40)
    labelled = Images(images, torch.zeros(40))
    models = [deciding(one)[0].model for one in (images, images.flip(0))]
    with torch.no_grad():
        gates_of(models[1]).get_submodule(PER_INPUT).policy[-1].weight.neg_()
    first, second = (typical_image([model], labelled) for model in models)
    assert not torch.equal(first, second)
    assert torch.equal(typical_image(models, labelled), first)
    assert torch.equal(typical_image(models[::-1], labelled), second)


def test_where_no_network_decides_any_image_will_do():
    images = EXAMPLES["padded"].images(4)
    models = [EXAMPLES["padded"].model(), compressed("padded", 0.0, 0.4).model]
    assert torch.equal(typical_image(models, Images(images, torch.zeros(4))), images[:1])


def test_a_network_that_decides_is_measured_beside_those_that_do_not():
    model, images = EXAMPLES["padded"].model(), EXAMPLES["padded"].images(20)
    network = PrunableNetwork(model, real_images(model, [images]))
    found, macs = deciding(images)
    rows = measure_side_by_side(
        network,
        {"fixed": compressed("padded", 0.0, 0.4), "own": found},
        Images(images, torch.zeros(20).long()),
    )
    (ratios,) = (one for one in found.model.modules() if isinstance(one, PerInputPolicy))
    assert rows.evaluations["own"].macs == round(sum(macs) / 20) + ratios.macs
    assert rows.evaluations["fixed"].macs == network.cost.price("macs", found.levels)
    assert all(one.latency_ms > 0 for one in rows.evaluations.values())
    assert rows.gated["own"] == rows.gated["fixed"] == len(ratios.units)
