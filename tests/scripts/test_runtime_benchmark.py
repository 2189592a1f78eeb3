import json
import sys
from types import SimpleNamespace

import pytest
import torch

from prunegym.pruning.calibration.statistics import real_images
from prunegym.pruning.data import Images
from prunegym.pruning.method import Method
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.runtime.gates import gates_of
from prunegym.scripts.benchmarks import runtime_accuracy, runtime_latency
from prunegym.scripts.benchmarks.results import Record
from prunegym.scripts.benchmarks.runtime_accuracy import KINDS
from prunegym.scripts.benchmarks.runtime_latency import Subject
from prunegym.scripts.options.benchmark import BenchmarkConfig
from tests.pruning.example_networks import EXAMPLES

pytestmark = pytest.mark.runs

KIND = {kind.name: kind for kind in KINDS}


def measured(tmp_path, found):
    """Measure what is missing among what was found."""
    config = BenchmarkConfig("runtime", device="cpu")
    runtime_latency.measure(config, found, Record(tmp_path / "results.json", {}, {"latency": found}))
    return found


def test_every_form_is_timed_and_what_is_there_is_not_timed_again(monkeypatch, tmp_path, capsys):
    subject = Subject("cifar_resnet20", 32, ("layer3.*.conv1",))
    monkeypatch.setattr(runtime_latency, "SUBJECTS", (subject,))
    monkeypatch.setattr(runtime_latency, "ROUNDS", 2)
    monkeypatch.setattr(runtime_latency, "THREADS", (1,))
    threads = torch.get_num_threads()
    found = measured(tmp_path, {})
    forms = found["cifar_resnet20 at 32"]["1"]
    assert len(forms) == 1 + 3 * len(runtime_latency.RATIOS)
    assert all(0 < low <= median <= high for low, median, high in forms.values())
    assert torch.get_num_threads() == threads
    assert json.loads((tmp_path / "results.json").read_text())["results"]["latency"] == found
    monkeypatch.setattr(runtime_latency, "time_in_turn", None)  # calling it would fail
    runtime_latency.show(measured(tmp_path, found))
    assert "cifar_resnet20 at 32, batch 1, 1 threads" in capsys.readouterr().out


def test_without_the_zoo_the_others_are_measured_all_the_same(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(runtime_latency, "SUBJECTS", (Subject("torchvision/resnet18", 64, ("*",)),))
    with monkeypatch.context() as patch:
        for module in ("torchvision", "torchvision.models"):
            patch.setitem(sys.modules, module, None)
        found = measured(tmp_path, {})
    runtime_latency.show(found)
    said = " ".join(capsys.readouterr().out.split())
    assert "not measured, networks by a zoo's name need torchvision" in said
    assert 'pip install "prunegym[zoo]"' in said
    monkeypatch.setattr(runtime_latency, "_measure_subject", lambda subject, config: {"1": "measured now"})
    assert measured(tmp_path, found) == {"torchvision/resnet18 at 64": {"1": "measured now"}}


@pytest.mark.parametrize(
    ("kind", "static", "runtime"),
    [
        ("static", 0.5, 0.0),
        ("runtime", 0.0, 0.5),
        ("static and runtime", 1 / 3, 0.25),
        ("trust 0.5 (Chen et al.)", 0.0, 0.5),
    ],
)
def test_every_kind_leaves_the_same_share_running(kind, static, runtime):
    decision = KIND[kind].decision(0.5)
    assert (decision["static_ratio"], decision["runtime_ratio"]) == pytest.approx((static, runtime))


@pytest.fixture
def network():
    chosen = EXAMPLES["plain"]
    model = chosen.model()
    return PrunableNetwork(model, real_images(model, [chosen.images(16)]), method=Method(compensation="none"))


@torch.no_grad()
def test_the_published_rule_is_priced_by_what_it_runs(network):
    small = runtime_accuracy._applied(network, KIND["trust 0.5 (Chen et al.)"], 0.5)
    images = EXAMPLES["plain"].images(300, seed=7)
    labels = network.model(images).argmax(1)
    test = Images(images, labels)
    task = SimpleNamespace(splits=SimpleNamespace(test=test))
    cell = runtime_accuracy._cell(network, small, task)
    masks = [gates_of(small.model).gate_for(group.name).mask for group in network.graph.prunable]
    assert [len(mask) for mask in masks] == [300, 300]
    executed = torch.tensor([float(mask.sum(1).mean()) for mask in masks]).double().numpy()
    expected = network.cost.shares({**small.levels, "gates": executed})["macs"]
    assert cell["macs"] == pytest.approx(expected)
    assert cell["params"] > 1  # nothing is removed, and the gates come on top
    assert 0 < cell["accuracy"] < 1
