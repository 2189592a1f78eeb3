"""`train-per-input` through the command line, and what other verbs make of its results."""

import contextlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import prunegym.agents.per_input.rounds
import prunegym.pruning.evaluation.comparison
import prunegym.scripts.finetune
from prunegym.envs import Budget, NetworkSource, load_task
from prunegym.pruning.data import load_splits
from prunegym.pruning.metrics import accuracy
from prunegym.pruning.runtime.outcomes import input_outcomes
from prunegym.pruning.storage.compressed import load_compressed
from prunegym.pruning.training import dense
from prunegym.scripts.benchmarks import figures
from prunegym.scripts.benchmarks import per_input as benchmark
from prunegym.scripts.cli import main
from prunegym.scripts.options.benchmark import BenchmarkConfig
from tests.scripts.conftest import in_own_process
from tests.scripts.test_main_job import METRICS, read, without_latency

pytestmark = pytest.mark.runs

ROWS = ["dense", "static", "fixed", "per-input"]
QUICK = ["--hyper", "n_epochs=1", "--hyper", "episodes_per_update=64"]


def trained(*argv):
    """Run `train-per-input` and return what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main(["train-per-input", *map(str, argv), "--json", "--quiet"])
    assert code == 0
    return json.loads(printed.getvalue())


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run on the embedded default; not to be changed."""
    folder = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNEGYM_CACHE", str(folder / "cache"))
        patch.setattr(dense, "_DIGITS_CONFIG", replace(dense._DIGITS_CONFIG, epochs=2))
        patch.setattr(
            prunegym.pruning.evaluation.comparison,
            "measure_latency",
            lambda models, *_: dict.fromkeys(models, 1.5),
        )
        flags = [
            "--rounds",
            1,
            "--episodes",
            600,
            "--budget",
            "macs=0.4",
            "--device",
            "cpu",
            "--out",
            folder / "run",
        ]
        (folder / "stdout.json").write_text(json.dumps(trained(*flags)))
    return folder / "run"


@pytest.fixture(scope="module")
def flags(material):
    return [*material.flags, *QUICK, "--episodes", 200]


@pytest.fixture(scope="module")
def run(flags, tmp_path_factory):
    """A run on the tiny network; not to be changed."""
    out = tmp_path_factory.mktemp("tiny") / "run"
    trained(*flags, "--budget", "macs=0.6", "--out", out)
    return out


def test_everything_is_written_and_the_metrics_are_printed(digits):
    written = {path.name for path in digits.iterdir()}
    files = {"config.json", "metrics.json", "plan.json", "updates.jsonl", "inputs.npz"}
    assert written == files | {"compressed", "tensorboard", "checkpoint", "pictures"}
    metrics = read(digits / "metrics.json")
    assert read(digits.parent / "stdout.json") == metrics
    assert list(metrics["rows"]) == ROWS
    assert all(set(row) == METRICS for row in metrics["rows"].values())
    assert read(digits / "plan.json")["decisions"] == metrics["plans"]["per-input"]
    config = read(digits / "config.json")
    assert {"rounds", "tune_epochs"} < set(config)
    assert not {"algo", "baselines", "n_envs", "first_images", "per_input"} & set(config)


def test_all_rows_cost_the_same_on_average(digits):
    metrics = read(digits / "metrics.json")
    macs = {name: row["macs"] for name, row in metrics["rows"].items()}
    assert macs["static"] <= macs["fixed"] <= 0.4 * macs["dense"]
    assert macs["per-input"] == pytest.approx(macs["fixed"], rel=0.05)
    assert macs["static"] == pytest.approx(macs["fixed"], rel=0.05)
    learned = metrics["per_input"]
    assert learned["share"] == macs["fixed"] / macs["dense"]
    assert 0.97 * learned["share"] < learned["share_on_validation"] <= learned["share"]


def test_inputs_differ_in_what_they_take(digits):
    metrics = read(digits / "metrics.json")
    quantiles = metrics["per_input"]["macs_quantiles"]
    assert quantiles == sorted(quantiles)
    assert quantiles[-1] > 1.02 * quantiles[0]
    gates = metrics["gated_groups"]
    assert gates == {"dense": 0, "static": 0, "fixed": gates["per-input"], "per-input": gates["fixed"]}
    assert len(metrics["per_input"]["ratios"]) == gates["per-input"] > 0


def test_the_verdict_says_what_the_rows_say(digits):
    metrics = read(digits / "metrics.json")
    found, fixed = metrics["rows"]["per-input"], metrics["rows"]["fixed"]
    points = 100 * (found["accuracy"] - fixed["accuracy"])
    assert f"{points:+.1f} points at {found['macs'] / fixed['macs']:.3f} times" in metrics["verdict"]


def test_evaluating_in_a_new_process_gives_the_very_accuracy_and_cost(digits):
    outcome = in_own_process("scripts/evaluate.py", "--compressed", digits, "--device", "cpu", "--json")
    assert outcome.code == 0, outcome.err
    row = read(digits / "metrics.json")["rows"]["per-input"]
    measured = json.loads(outcome.out)
    assert without_latency(measured) == without_latency(row)
    assert measured["latency_ms"] > 0


def test_every_update_of_every_round_is_written_down(digits, run):
    for folder in (digits, run):
        updates = [json.loads(line) for line in (folder / "updates.jsonl").read_text().splitlines()]
        rounds = {digits: 1, run: 2}[folder]
        by_round = [[one for one in updates if one["round"] == number + 1] for number in range(rounds)]
        assert updates == [one for mine in by_round for one in mine]
        for mine in by_round:
            seen = [one["episodes"] for one in mine]
            assert seen == [seen[0] * (n + 1) for n in range(len(seen))]
            assert all(0 < one["macs"] < 1 and 0 <= one["agrees"] <= 1 for one in mine)
        learned_from = sum(mine[-1]["episodes"] for mine in by_round)
        assert read(folder / "metrics.json")["per_input"]["inputs_learned_from"] == learned_from


def test_what_each_test_image_took_is_recorded(run, material):
    metrics = read(run / "metrics.json")
    with np.load(run / "inputs.npz") as archive:
        inputs = dict(archive)
    row, dense = metrics["rows"]["per-input"], metrics["rows"]["dense"]
    assert round(inputs["macs"].mean() * dense["macs"]) == row["macs"]
    assert inputs["right"].mean() == pytest.approx(row["accuracy"])
    assert inputs["ratios"].mean(0).tolist() == pytest.approx(list(metrics["per_input"]["ratios"].values()))
    assert inputs["gates"].tolist() == list(metrics["per_input"]["ratios"])
    assert inputs["budget"] == metrics["per_input"]["share"]
    assert (inputs["reference"] >= 0).all()
    assert inputs["reference"].max() > 0
    cheap, dear = inputs["examples_macs"]
    assert cheap.tolist() == np.sort(inputs["macs"])[:8].tolist()
    assert dear.tolist() == np.sort(inputs["macs"])[::-1][:8].tolist()
    images = material.arrays()["test_images"]
    for picture, macs in zip(inputs["examples"].reshape(-1, 8, 8), [*cheap, *dear], strict=True):
        (number,) = [n for n, image in enumerate(images) if (image == picture).all()]
        assert inputs["macs"][number] == macs


def test_the_network_on_disk_decides_for_each_input_as_was_measured(run, material):
    loaded = load_compressed(run / "compressed", network=material.model)
    found = input_outcomes(loaded.model, load_splits(f"npz:{material.data}", loaded.network).test)
    with np.load(run / "inputs.npz") as archive:
        np.testing.assert_allclose(found.macs, archive["macs"])
    row = read(run / "metrics.json")["rows"]["per-input"]
    assert accuracy(found.logits, found.labels) == row["accuracy"]


@pytest.fixture
def plan(tmp_path):
    decisions = {
        "a.0": {"static_ratio": 0.25, "runtime_ratio": 0.3},
        "c.0": {"static_ratio": 0.2, "runtime_ratio": 0.25},
        "stem.0": {"static_ratio": 0.125, "runtime_ratio": 0.0},
    }
    (tmp_path / "plan.json").write_text(json.dumps({"version": 2, "decisions": decisions}))
    return tmp_path / "plan.json"


def test_a_plan_is_departed_from_and_its_static_ratios_stay(flags, plan, material, tmp_path):
    out = tmp_path / "run"
    # static ratios alone keep this budget; no even plan without them would
    metrics = trained(*flags, "--plan", plan, "--budget", "macs=0.45", "--out", out)
    given, found = read(plan)["decisions"], metrics["plans"]["per-input"]
    assert metrics["plans"]["fixed"] == given
    for group, decision in given.items():
        assert found[group]["static_ratio"] == decision["static_ratio"]
    assert found["a.0"]["runtime_ratio"] != given["a.0"]["runtime_ratio"]
    state = load_compressed(out / "compressed", network=material.model).model.state_dict()
    assert {name: len(state[f"{name}.0.weight"]) for name in ("a", "c", "stem")} == {
        "a": 9,
        "c": 8,
        "stem": 7,
    }
    assert metrics["rows"]["per-input"]["macs"] == pytest.approx(
        0.45 * metrics["rows"]["dense"]["macs"], rel=0.1
    )


def test_in_one_round_the_plan_stays_as_it_is(flags, plan, tmp_path):
    metrics = trained(*flags, "--plan", plan, "--rounds", 1, "--out", tmp_path / "run")
    assert metrics["plans"]["per-input"] == read(plan)["decisions"]
    assert [path.name for path in (tmp_path / "run" / "checkpoint").iterdir()] == ["round-1"]


def test_static_ratios_are_even_where_no_plan_says_otherwise(flags, tmp_path):
    metrics = trained(*flags, "--static-ratio", 0.1, "--rounds", 1, "--out", tmp_path / "run")
    decisions = metrics["plans"]["fixed"].values()
    assert {one["static_ratio"] for one in decisions} == {0.1}
    assert len({one.get("runtime_ratio", 0.0) for one in decisions} - {0.0}) == 1


def test_fine_tuning_comes_after_each_round_and_as_long_for_the_others(flags, monkeypatch, run, tmp_path):
    tuned, finetune_ = [], prunegym.agents.per_input.rounds.finetune_

    def note(model, images, config, *, teacher):
        tuned.append((config.epochs, teacher is not None, len(images)))
        return finetune_(model, images, config, teacher=teacher)

    monkeypatch.setattr(prunegym.agents.per_input.rounds, "finetune_", note)
    metrics = trained(*flags, "--budget", "macs=0.6", "--tune-epochs", 1, "--out", tmp_path / "run")
    assert tuned == [(epochs, True, 160) for epochs in (1, 1, 2, 2)]  # all images but the test images
    assert metrics["plans"]["per-input"] == metrics["plans"]["fixed"]  # weights go on, so the plan stays
    plain = read(run / "metrics.json")
    assert metrics["rows"]["dense"]["accuracy"] == plain["rows"]["dense"]["accuracy"]
    assert metrics["per_input"]["share_on_validation"] <= metrics["per_input"]["share"]
    assert metrics["rows"]["per-input"]["macs"] == pytest.approx(metrics["rows"]["fixed"]["macs"], rel=0.05)


def test_the_smallest_budget_named_can_be_asked_for(flags, run_cli, tmp_path):
    asked, out = "0.001", tmp_path / "run"
    for _ in range(3):
        outcome = run_cli("train-per-input", *flags, "--budget", f"macs={asked}", "--out", out)
        if outcome.code == 0:
            break
        assert (outcome.code, out.exists()) == (3, False), outcome.err
        asked = outcome.err.split("the smallest is ")[1].split(",")[0]
    metrics = read(out / "metrics.json")
    rows, learned = metrics["rows"], metrics["per_input"]
    assert rows["per-input"]["macs"] <= float(asked) * rows["dense"]["macs"]
    assert learned["share_on_validation"] <= learned["share"] + 1e-9


def test_a_config_file_holds_its_flags_too(run_cli, flags, tmp_path):
    text = "rounds: 1\ntune-epochs: 0\nstatic-ratio: 0.1\nmax-runtime-ratio: 0.8\n"
    (tmp_path / "c.yaml").write_text(text)
    outcome = run_cli("train-per-input", *flags, "--config", tmp_path / "c.yaml", "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    config = read(tmp_path / "run" / "config.json")
    assert (config["max_runtime_ratio"], config["rounds"], config["episodes"]) == (0.8, 1, 200)
    assert config["compensation"] == "least-squares-progressive"


class TestFineTuning:
    @pytest.fixture
    def command(self, run, material, tmp_path):
        return [
            *("finetune", "--compressed", run, "--model", material.model, "--device", "cpu", "--quiet"),
            *("--epochs", "2", "--out", tmp_path / "out", "--json"),
        ]

    @pytest.mark.parametrize("learn", ["labels", "distillation"])
    def test_inputs_cost_no_more_on_average_than_before(
        self, run_cli, command, run, material, tmp_path, learn
    ):
        weights = ["--weights", material.weights] if learn == "distillation" else []
        outcome = run_cli(*command, "--learn", learn, "--lr", "0.05", *weights)
        assert outcome.code == 0, outcome.err
        shares = []
        for folder in (run, tmp_path / "out"):
            loaded = load_compressed(folder / "compressed", network=material.model)
            validation = load_splits(f"npz:{material.data}", loaded.network).validation
            shares.append(input_outcomes(loaded.model, validation).macs.mean())
        before, after = shares
        assert 0.98 * before < after <= before

    def test_the_metrics_are_those_of_what_was_written(self, run_cli, command, run, material, tmp_path):
        record = json.loads(run_cli(*command, "--lr", "0.05").out)
        before, after = record["rows"]["before"], record["rows"]["after"]
        assert without_latency(before) == without_latency(read(run / "metrics.json")["rows"]["per-input"])
        assert after["macs"] != before["macs"]  # measured on the test images
        assert after["macs"] == pytest.approx(before["macs"], rel=0.05)
        evaluated = ["evaluate", "--compressed", tmp_path / "out", "--model", material.model, "--json"]
        assert without_latency(json.loads(run_cli(*evaluated).out)) == without_latency(after)

    def test_the_policy_itself_is_not_trained(self, run_cli, command, run, material, tmp_path):
        assert run_cli(*command).code == 0
        before, after = (
            load_compressed(folder / "compressed", network=material.model).model.state_dict()
            for folder in (run, tmp_path / "out")
        )
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        policy = {name for name in before if "per_input.policy" in name}
        assert policy
        assert not policy & changed
        assert {name for name in changed if "per_input" not in name}
        assert {name for name in changed if "per_input.typical" in name}  # seen anew

    def test_a_resumed_one_ends_alike(self, run_cli, command, monkeypatch, tmp_path):
        assert run_cli(*command, "--out", tmp_path / "whole").code == 0

        def stop(curves, epoch):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(prunegym.scripts.finetune.Curves, "write", stop)
            assert run_cli(*command).code == 130
        assert run_cli(*command, "--resume").code == 0
        for name in ("metrics.json", "compressed/model.safetensors"):
            assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


class TestBenchmark:
    @staticmethod
    def row(right, tuned, macs=0.5):
        def one(bits):
            return {"accuracy": sum(map(int, bits)) / len(bits), "right": bits, "macs": macs}

        return {**one(right), "tuned": one(tuned)}

    def test_the_table_says_how_far_per_input_ratios_are_ahead(self, capsys, monkeypatch):
        rows = {
            "static": self.row("1000", "1100", 0.48),
            "fixed": self.row("1100", "1110"),
            "fixed, learned": self.row("1110", "1110"),
            "per-input": self.row("1111", "1111", 0.502),
        }
        latency = {"dense": 9.0, "static": 5.0, "fixed": 6.0, "fixed, learned": 6.5, "per-input": 7.25}
        runs = {"0": {"rows": rows, "latency_ms": latency, "seconds": 61.0}}
        monkeypatch.setattr(figures, "RESAMPLES", 100)
        benchmark.show({"cifar_resnet20": runs, "cifar_resnet56": {**runs, "1": runs["0"]}})
        shown = capsys.readouterr().out
        assert "cifar_resnet56, 2 seeds" in shown
        lines = {line.split("│")[1].strip(): line for line in shown.splitlines() if line.startswith("│")}
        cells = {kind: [cell.strip() for cell in lines[kind].split("│")[2:-1]] for kind in lines}
        assert list(cells) == list(benchmark.KINDS)
        macs, found, behind, tuned, tuned_behind, milliseconds = cells["static"]
        assert (macs, found, tuned, milliseconds) == ("48.0 %", "25.0 ± 0.0", "50.0 ± 0.0", "5.00")
        assert behind.startswith("+75.0 [")
        assert tuned_behind.startswith("+50.0 [")
        assert cells["per-input"] == ["50.2 %", "100.0 ± 0.0", "-", "100.0 ± 0.0", "-", "7.25"]
        assert "dense: 9.00 ms; learning took 61 s a seed" in shown

    def test_a_run_measures_every_kind_at_equal_cost(self, material, monkeypatch):
        task = load_task(
            NetworkSource(
                material.model,
                weights=material.weights,
                input_size=(1, 8, 8),
                mean=(0.5,),
                std=(0.25,),
            ),
            data=f"npz:{material.data}",
            budget=Budget({"macs": 0.5}),
        )
        monkeypatch.setattr(benchmark, "cifar_task", lambda name, args, seed: task)
        monkeypatch.setattr(benchmark, "INNER", ("a.*", "c.*"))
        monkeypatch.setattr(benchmark, "EPOCHS", 1)
        monkeypatch.setattr(benchmark, "measure_latency", lambda models, *_, **__: dict.fromkeys(models, 1.5))
        record = benchmark._run(BenchmarkConfig("per-input", episodes=100), "any", "0")
        assert list(record["rows"]) == list(benchmark.KINDS)
        fixed = record["rows"]["fixed"]["macs"]
        for row in record["rows"].values():
            for one in (row, row["tuned"]):
                assert one["macs"] == pytest.approx(fixed, rel=0.08)
                assert one["accuracy"] == pytest.approx(np.mean([bit == "1" for bit in one["right"]]))
        assert list(record["latency_ms"]) == ["dense", *benchmark.KINDS]
        monkeypatch.setattr(figures, "RESAMPLES", 100)
        benchmark.show({"any": {"0": json.loads(json.dumps(record))}})
