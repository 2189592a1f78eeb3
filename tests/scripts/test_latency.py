import json

import pytest

import prunegym.pruning.evaluation.comparison
import prunegym.scripts.building
from prunegym.pruning.latency import latency_table
from tests.pruning.latency.devices import additive
from tests.scripts.conftest import in_own_process
from tests.scripts.test_main_job import read

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("no_pictures")]


@pytest.fixture
def device(tmp_path, monkeypatch):
    """A cache of its own, and a device that takes what it is said to take, both in tables and in rows."""
    monkeypatch.setenv("PRUNEGYM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        prunegym.scripts.building,
        "latency_table",
        lambda *network, **settings: latency_table(*network, **settings, time_of=additive),
    )
    monkeypatch.setattr(
        prunegym.pruning.evaluation.comparison,
        "measure_latency",
        lambda models, image: {name: additive(model, image) for name, model in models.items()},
    )


@pytest.fixture
def flags(material):
    """The network alone: its latency needs no images."""
    return [flag for flag in material.flags if flag not in ("--data", f"npz:{material.data}")]


@pytest.mark.usefixtures("device")
def test_the_verb_lists_layers_and_the_error_and_measures_once(run_cli, flags, monkeypatch):
    first = run_cli("latency", *flags, "--json")
    assert first.code == 0, first.err
    record = json.loads(first.out)
    assert [row["names"] for row in record["layers"]] == [["stem.0"], ["a.0"], ["b.0"], ["c.0"], ["linear"]]
    assert sum(row["milliseconds"] for row in record["layers"]) == pytest.approx(record["dense_milliseconds"])
    assert sum(row["share"] for row in record["layers"]) == pytest.approx(1)
    assert record["error"]["worst"] < 1e-5
    assert record["key"]["input"] == [1, 8, 8]
    monkeypatch.setattr("tests.pruning.latency.devices.additive", None)
    monkeypatch.setattr(prunegym.scripts.building, "latency_table", latency_table)  # by the clock, if at all
    assert run_cli("latency", *flags, "--json").out == first.out
    shown = run_cli("latency", *flags).out
    assert "a.0" in shown
    assert "off by 0.0% (median), 0.0% (worst)" in shown


@pytest.mark.usefixtures("device")
def test_describe_knows_the_reachable_latency_once_it_was_measured(run_cli, flags):
    assert list(json.loads(run_cli("describe", *flags, "--json").out)["budgets"]) == [
        "macs",
        "params",
        "bytes",
        "bops",
    ]
    run_cli("latency", *flags)
    smallest, whole = json.loads(run_cli("describe", *flags, "--json").out)["budgets"]["latency"]
    assert 0 < smallest < whole == 1


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("round_to", [1, 4])
def test_pruning_within_a_latency_budget_says_what_was_predicted_and_measured(
    run_cli, material, tmp_path, round_to, caplog
):
    out = tmp_path / "out"
    argv = [*material.flags, "--budget", "latency=0.6", "--round-to", round_to, "--out", out]
    outcome = run_cli("prune", *argv)
    assert outcome.code == 0, outcome.err
    entry, rows = read(out / "metrics.json")["latency"], read(out / "metrics.json")["rows"]
    assert entry["budget"] == 0.6
    assert entry["predicted"] <= 0.6
    assert entry["measured"] == pytest.approx(rows["pruned"]["latency_ms"] / rows["dense"]["latency_ms"])
    assert entry["measured"] == pytest.approx(entry["predicted"], rel=1e-4)
    assert f"latency: {entry['predicted']:.1%} of the dense network's predicted" in outcome.out
    assert caplog.messages == []
    units = {"stem.0": 8, "a.0": 12, "c.0": 10}
    kept = [
        round(units[group] * (1 - one["static_ratio"]))
        for group, one in read(out / "plan.json")["decisions"].items()
    ]
    assert all(count % round_to == 0 or count in units.values() for count in kept)
    assert all(one.get("runtime_ratio", 0.0) == 0 for one in read(out / "plan.json")["decisions"].values())


@pytest.mark.usefixtures("device")
def test_a_missed_budget_is_warned_of_in_one_line(run_cli, material, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(
        prunegym.pruning.evaluation.comparison,
        "measure_latency",
        lambda models, image: {"dense": 1.0, "pruned": 0.7},
    )
    outcome = run_cli("prune", *material.flags, "--budget", "latency=0.6", "--out", tmp_path / "out")
    assert outcome.code == 0
    (warning,) = caplog.messages
    assert "70.0 % of the dense network's was measured where 60.0 % may remain" in warning


@pytest.mark.usefixtures("device")
def test_learning_within_a_latency_budget(run_cli, material, tmp_path):
    out = tmp_path / "out"
    flags = [*material.flags, "--budget", "latency=0.6", "--episodes", "3", "--baselines", "sensitivity"]
    outcome = run_cli("train", *flags, "--out", out)
    assert outcome.code == 0, outcome.err
    metrics = read(out / "metrics.json")
    ms = {name: row["latency_ms"] for name, row in metrics["rows"].items()}
    assert ms["uniform"] <= 0.6 * ms["dense"]
    assert max(ms["sensitivity"], ms["learned"]) <= ms["uniform"] * (1 + 1e-6)
    assert metrics["latency"]["predicted"] <= 0.6
    assert "latency" in metrics["verdict"]


def test_gates_beside_a_latency_budget_are_refused(refused, material, tmp_path):
    flags = [*material.flags, "--budget", "latency=0.6", "--max-runtime-ratio", "0.5"]
    for verb in ("train", "prune"):
        assert "asks for gates" in refused(verb, *flags, "--out", tmp_path / "out")


@pytest.mark.usefixtures("device")
def test_a_latency_that_cannot_be_reached_exits_with_3(run_cli, material, tmp_path):
    outcome = run_cli("prune", *material.flags, "--budget", "latency=0.01", "--out", tmp_path / "out")
    assert outcome.code == 3
    assert "budget latency=0.01 cannot be reached: the smallest is 0." in outcome.err
    assert not (tmp_path / "out").exists()


def test_by_the_clock_of_this_machine_a_network_has_a_table(flags, tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEGYM_CACHE", str(tmp_path))
    outcome = in_own_process("scripts/latency.py", *flags, "--json")
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)
    assert record["dense_milliseconds"] > 0
    assert all(row["milliseconds"] > 0 for row in record["layers"])
    assert 0 <= record["error"]["median"] <= record["error"]["worst"]
    assert [path.name.startswith("latency-") for path in tmp_path.iterdir()] == [True]
