import json
import logging
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import prunegym.pruning.latency.cache
from prunegym.pruning.calibration.statistics import real_images
from prunegym.pruning.errors import BudgetError, PruningError
from prunegym.pruning.files.cache import write_cached
from prunegym.pruning.graph import find_groups
from prunegym.pruning.latency import LatencyPrices, LayerTimes, cached_table, latency_table
from prunegym.pruning.latency.cache import device_name
from prunegym.pruning.latency.layers import layer_grids, thinned, widths_to_time
from prunegym.pruning.latency.measuring import measure_table
from prunegym.pruning.latency.records import fit_whole, rising
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.surgery.cutting import cut
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.latency.devices import additive, noisy
from tests.pruning.oracles import example, random_kept


def measured(name, device):
    model, graph, _ = example(name)
    return measure_table(model, graph, layer_grids(model, graph), {}, time_of=device)


@cache
def noisy_prices(name):
    return LatencyPrices(example(name)[1], measured(name, noisy()))


def counts_of(graph, kept):
    return np.array([len(kept[group.name]) for group in graph.prunable], dtype=np.int64)


@pytest.mark.conformance
@pytest.mark.parametrize("name", list(EXAMPLES))
def test_a_device_that_adds_up_is_predicted_to_the_nanosecond(name):
    model, graph, images = example(name)
    table = measured(name, additive)
    prices = LatencyPrices(graph, table)
    assert table.worst_error < 1e-5
    assert table.dense == pytest.approx(additive(model, images[:1]))
    for seed in range(3):
        kept = random_kept(graph, seed)
        took = additive(cut(model, graph, kept), images[:1])
        assert prices(counts_of(graph, kept)) == pytest.approx(1e6 * took, rel=1e-5, abs=2)


@pytest.mark.parametrize("name", ["residual", "depthwise", "grouped", "flatten"])
@settings(max_examples=100)
@given(data=st.data())
def test_on_a_noisy_device_a_wider_network_is_never_cheaper(name, data):
    units = [group.units for group in example(name)[1].prunable]
    wide = [data.draw(st.integers(0, most)) for most in units]
    narrow = [data.draw(st.integers(0, most)) for most in wide]
    prices = noisy_prices(name)
    assert prices(np.array(narrow)) <= prices(np.array(wide))


def test_between_two_widths_the_price_lies_on_the_line():
    _, graph, _ = example("mlp")
    prices = LatencyPrices(graph, measured("mlp", additive))
    first, *others = (group.units for group in graph.prunable)
    at = [prices(np.array([count, *others])) for count in range(1, first + 1)]
    assert np.ptp(np.diff(at)) <= 2  # a nanosecond at each end is rounding


def test_layers_of_equal_shape_are_timed_once():
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)), nn.Flatten(), nn.Linear(100, 2))
    network = PrunableNetwork(model.eval(), real_images(model, [torch.randn(4, 4, 5, 5)]))
    grids = layer_grids(model, network.graph)
    # the first reads the image, whose channels stay; the other two are alike
    assert [grid.layers for grid in grids] == [("0",), ("1", "2"), ("4",)]
    assert [grid.inputs for grid in grids[:2]] == [(4,), (1, 4)]
    assert grids[2].outputs == (2,)  # the logits stay


def test_the_ends_of_blocks_are_timed_and_what_lies_just_beyond():
    assert widths_to_time(4) == (1, 4)
    assert widths_to_time(40) == (1, 8, 16, 17, 32, 33, 40)
    assert widths_to_time(300) == (1, 8, 16, 17, 32, 33, 48, 49, 64, 65, 128, 129, 256, 257, 300)
    assert widths_to_time(40, step=4) == (4, 32, 40)


@pytest.mark.parametrize(
    ("layer", "conv_groups", "image"),
    [
        (nn.Conv2d(8, 12, 3, groups=4), 4, torch.ones(1, 4, 5, 5)),
        (nn.ConvTranspose2d(8, 12, 3, groups=4), 4, torch.ones(1, 4, 5, 5)),
        (nn.Conv1d(6, 12, 3, groups=6), 1, torch.ones(1, 4, 5)),  # depthwise, two outputs for each input
        (nn.Linear(5, 12), 1, torch.ones(1, 7, 4)),
    ],
)
def test_a_thinned_layer_has_the_widths_asked_for_and_runs(layer, conv_groups, image):
    cin = 6 if isinstance(layer, nn.Conv1d) else 4
    thin = thinned(layer, cin, 8, conv_groups)
    assert thin(image).size(-1 if isinstance(layer, nn.Linear) else 1) == 8
    assert layer.weight.shape != thin.weight.shape  # a copy: the layer stays as it was


def test_noise_upwards_gives_way_to_a_faster_wider_layer():
    times = np.array([[1.0, 9.0, 3.0], [5.0, 2.0, 4.0]])
    assert rising(times) == ((1.0, 2.0, 3.0), (2.0, 2.0, 4.0))


def test_the_fit_finds_the_coefficients_and_none_is_negative():
    layers, values = np.array([1.0, 2.0, 4.0, 5.0]), np.array([100.0, 50.0, 30.0, 300.0])
    whole = fit_whole(layers, values, 1.5 * layers + 0.01 * values + 0.25)
    assert (whole.scale, whole.per_value, whole.constant) == pytest.approx((1.5, 0.01, 0.25))
    whole = fit_whole(layers, values, 2.0 * layers - 0.1)
    assert whole.constant == 0.0
    assert whole.per_value >= 0.0


def test_times_that_fall_or_are_missing_are_refused():
    with pytest.raises(ValueError, match="rise with the widths"):
        LayerTimes(("conv",), (1, 2), (1, 2), ((1.0, 2.0), (0.5, 3.0)))
    with pytest.raises(ValueError, match="rise with the widths"):
        LayerTimes(("conv",), (1,), (1,), ((float("nan"),),))
    with pytest.raises(ValueError, match="a time for each pair"):
        LayerTimes(("conv",), (1, 2), (1, 2), ((1.0, 2.0),))


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A network, its graph, and a counter of timings; the cache is a folder of its own."""
    monkeypatch.setenv("PRUNEGYM_CACHE", str(tmp_path / "cache"))
    model, graph, _ = example("residual")
    timings = []

    def device(module, image):
        timings.append(module)
        return additive(module, image)

    return model, graph, timings, device


def test_a_table_is_measured_once_and_then_read(small, tmp_path):
    model, graph, timings, device = small
    assert cached_table(model, graph) is None
    table = latency_table(model, graph, time_of=device)
    took = len(timings)
    assert took > 0
    assert latency_table(model, graph, time_of=device) == cached_table(model, graph) == table
    assert len(timings) == took
    assert latency_table(model, graph, time_of=device, remeasure=True) == table
    assert len(timings) == 2 * took
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (prunegym.pruning.latency.cache, "device_name", lambda device: "another"),
        (torch, "get_num_threads", lambda: 7),
        (torch, "__version__", "0.1"),
    ],
)
def test_another_device_thread_count_or_torch_has_a_table_of_its_own(owner, name, value, small, monkeypatch):
    model, graph, _, device = small
    table = latency_table(model, graph, time_of=device)
    monkeypatch.setattr(owner, name, value)
    assert cached_table(model, graph) is None
    assert latency_table(model, graph, time_of=device).key != table.key


def test_another_structure_or_image_size_has_a_table_of_its_own(small):
    model, graph, _, device = small
    latency_table(model, graph, time_of=device)
    other, other_graph, _ = example("projected")
    assert cached_table(other, other_graph) is None
    wide = find_groups(model, (3, 16, 16))
    assert wide.input_shape != graph.input_shape
    assert cached_table(model, wide) is None


def test_a_processor_has_a_name():
    assert device_name(torch.device("cpu"))
    assert device_name(torch.device("meta")) == "meta"


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"{",
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content.replace(b"1", b"2", 1),
        lambda content: bytes([*content[:-2], content[-2] ^ 1, content[-1]]),
    ],
)
def test_a_damaged_table_is_measured_anew(damage, small, tmp_path, caplog):
    model, graph, _, device = small
    table = latency_table(model, graph, time_of=device)
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert latency_table(model, graph, time_of=device) == table
    assert f"{path} is damaged and left aside" in caplog.text
    assert cached_table(model, graph) == table


@pytest.mark.parametrize(
    "junk", [[], {}, {"errors": ["x"]}, {"layers": [{}], "whole": None, "errors": [1], "dense": 1}]
)
def test_a_table_that_somebody_changed_is_measured_anew(junk, small, tmp_path, caplog):
    model, graph, _, device = small
    table = latency_table(model, graph, time_of=device)
    (path,) = (tmp_path / "cache").iterdir()
    write_cached(path, json.dumps(junk).encode())
    assert latency_table(model, graph, time_of=device) == table
    assert f"the latency table {path} is unusable and left aside" in caplog.text


def test_a_cache_that_cannot_be_written_does_not_stop_the_work(small, tmp_path, monkeypatch, caplog):
    model, graph, _, device = small
    (tmp_path / "file").touch()
    monkeypatch.setenv("PRUNEGYM_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert latency_table(model, graph, time_of=device).layers
    assert "not cached" in caplog.text


def test_a_table_of_another_network_is_refused():
    _, graph, _ = example("residual")
    table = measured("residual", additive)
    with pytest.raises(BudgetError, match="of another network"):
        LatencyPrices(example("projected")[1], table)
    with pytest.raises(BudgetError, match="of another network"):
        LatencyPrices(graph, replace(table, layers=table.layers[1:]))


def test_a_network_prices_latency_once_it_has_a_table(small):
    model, graph, _, device = small
    network = PrunableNetwork(model, real_images(model, [example("residual")[2]]), protect=["a.0"])
    with pytest.raises(BudgetError, match="enable_latency_prices_"):
        network.cost.price("latency", network.cost.dense)
    network.enable_latency_prices_(latency_table(model, graph, time_of=device))
    took = 1e6 * additive(model, example("residual")[2][:1])
    assert network.cost.price("latency", network.cost.dense) == pytest.approx(took, abs=2)


def test_a_network_without_layers_has_no_latency():
    model = nn.Sequential(nn.ReLU())
    with pytest.raises(PruningError, match="runs no convolution or linear layer"):
        latency_table(model, find_groups(model, (3, 6, 6)))
