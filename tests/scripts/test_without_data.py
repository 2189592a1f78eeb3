import json
import math

import pytest

from prunegym.envs import tasks
from prunegym.pruning.calibration.synthesis import SYNTHESES, distilled, records
from prunegym.pruning.compensation import COMPENSATIONS
from tests.scripts.conftest import QUICK
from tests.scripts.test_main_job import METRICS, ROWS, read, without_latency

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("no_pictures")]

RATIO = ["--static-ratio", "0.4"]


@pytest.fixture(autouse=True)
def small_sets(monkeypatch, tmp_path_factory):
    """Few images and steps, made once for all tests."""
    monkeypatch.setenv("PRUNEGYM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr(records, "MAX_IMAGES", 48)
    monkeypatch.setattr(distilled, "STEPS", 5)


@pytest.fixture
def flags(material):
    """The material without its images."""
    given = material.flags
    given[given.index("--data") + 1] = "none"
    return given


@pytest.mark.parametrize("calibration", list(SYNTHESES))
@pytest.mark.parametrize("compensation", list(COMPENSATIONS))
def test_every_combination_prunes(run_cli, flags, tmp_path, compensation, calibration):
    method = ["--compensation", compensation, "--calibration", calibration]
    outcome = run_cli("prune", *flags, *RATIO, *method, "--out", tmp_path / "run", "--json")
    assert outcome.code == 0, outcome.err
    dense, pruned = json.loads(outcome.out)["rows"].values()
    assert set(pruned) == METRICS
    assert (dense["accuracy"], dense["agreement"]) == (None, 1.0)
    assert pruned["accuracy"] is None
    assert 0 <= pruned["agreement"] <= 1
    assert pruned["macs"] < 0.7 * dense["macs"]


def test_images_to_report_on_take_no_part_in_the_decision(run_cli, flags, material, tmp_path):
    images = ["--eval-data", f"npz:{material.data}"]
    with_images = run_cli("prune", *flags, *RATIO, *images, "--out", tmp_path / "with", "--json")
    without = run_cli("prune", *flags, *RATIO, "--out", tmp_path / "without", "--json")
    assert (with_images.code, without.code) == (0, 0), with_images.err
    row = json.loads(with_images.out)["rows"]["pruned"]
    assert row["accuracy"] is not None
    assert row["agreement"] is None
    weights = [tmp_path / name / "compressed" / "model.safetensors" for name in ("with", "without")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    model = ["--model", material.model]
    again = run_cli("evaluate", "--compressed", tmp_path / "with", *model, "--json")
    assert without_latency(json.loads(again.out)) == without_latency(row)


def test_a_policy_is_learned_without_data(run_cli, flags, tmp_path):
    outcome = run_cli("train", *flags, *QUICK, "--episodes", "8", "--out", tmp_path / "run", "--json")
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)
    assert list(record["rows"]) == ROWS
    assert all(row["accuracy"] is None and row["agreement"] is not None for row in record["rows"].values())
    assert record["rows"]["dense"]["agreement"] == 1.0
    for candidate in record["candidates"].values():
        parts = candidate["reward"]  # the disagreement, as a share of what uniform pruning disagrees
        assert parts["total"] == math.exp(-(1 - parts["accuracy"]) / parts["reference"])
    assert record["rows"]["learned"]["macs"] <= record["rows"]["uniform"]["macs"]
    assert ("NOT" in record["verdict"]) == (
        record["rows"]["learned"]["agreement"] <= record["rows"]["uniform"]["agreement"]
    )


def test_the_table_says_what_was_measured(run_cli, flags, tmp_path):
    outcome = run_cli("prune", *flags, *RATIO, "--out", tmp_path / "run")
    assert "on synthetic images: agreement with" in " ".join(outcome.out.split())
    assert "accuracy" not in outcome.out


def test_what_was_made_without_data_is_evaluated_on_images_named(run_cli, flags, material, refused, tmp_path):
    run_cli("prune", *flags, *RATIO, "--calibration", "noise", "--out", tmp_path / "run")
    loaded = ["evaluate", "--compressed", tmp_path / "run", "--model", material.model]
    assert "name some with --data" in refused(*loaded)
    assert run_cli(*loaded, "--data", f"npz:{material.data}").code == 0


def test_data_calibrates_by_what_is_asked_for(run_cli, material, tmp_path):
    for calibration in ("data", "noise"):
        out = ["--calibration", calibration, "--out", tmp_path / calibration]
        assert run_cli("prune", *material.flags, *RATIO, *out).code == 0
    rows = [read(tmp_path / name / "metrics.json")["rows"]["pruned"] for name in ("data", "noise")]
    assert rows[0]["accuracy"] is not None
    assert rows[1]["accuracy"] is not None
    weights = [tmp_path / name / "compressed" / "model.safetensors" for name in ("data", "noise")]
    assert weights[0].read_bytes() != weights[1].read_bytes()


def test_a_real_resnet20_is_compressed_without_data(run_cli, resnet20, monkeypatch, tmp_path):
    monkeypatch.setattr(records, "MAX_IMAGES", 256)
    given = [*resnet20[:-1], "none", "--eval-data", resnet20[-1], "--only", "*.conv1", *RATIO]
    accuracy = {}
    for compensation in ("none", "least-squares"):
        method = ["--calibration", "noise", "--compensation", compensation, "--out", tmp_path / compensation]
        outcome = run_cli("prune", *given, *method, "--json", "--quiet")
        assert outcome.code == 0, outcome.err
        accuracy[compensation] = json.loads(outcome.out)["rows"]["pruned"]["accuracy"]
    assert accuracy["none"] < 0.6
    assert accuracy["least-squares"] > 0.7


def test_it_is_learned_what_each_input_takes_without_data(run_cli, flags, material, monkeypatch, tmp_path):
    def refuse(*arguments, **keywords):
        raise AssertionError("there is no data")

    monkeypatch.setattr(tasks, "load_splits", refuse)
    quick = ["--episodes", "100", "--rounds", "1", "--budget", "macs=0.6", "--hyper", "n_epochs=1"]
    outcome = run_cli("train-per-input", *flags, *quick, "--out", tmp_path / "run", "--json")
    assert outcome.code == 0, outcome.err
    rows = json.loads(outcome.out)["rows"]
    assert list(rows) == ["dense", "static", "fixed", "per-input"]
    assert all(row["accuracy"] is None and row["agreement"] is not None for row in rows.values())
    assert rows["dense"]["agreement"] == 1.0
    assert rows["per-input"]["macs"] == pytest.approx(rows["fixed"]["macs"], rel=0.05)


def test_images_to_report_on_take_no_part_in_what_is_learned_for_each_input(
    run_cli, flags, material, tmp_path
):
    quick = ["--episodes", "100", "--rounds", "1", "--budget", "macs=0.6", "--hyper", "n_epochs=1"]
    for name, images in (("with", ["--eval-data", f"npz:{material.data}"]), ("without", [])):
        outcome = run_cli("train-per-input", *flags, *quick, *images, "--out", tmp_path / name)
        assert outcome.code == 0, outcome.err
    row = read(tmp_path / "with" / "metrics.json")["rows"]["per-input"]
    assert row["accuracy"] is not None
    weights = [tmp_path / name / "compressed" / "model.safetensors" for name in ("with", "without")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    again = run_cli("evaluate", "--compressed", tmp_path / "with", "--model", material.model, "--json")
    assert without_latency(json.loads(again.out)) == without_latency(row)
