"""Fine-tuning through the command line: what it learns from, what it writes, and how it goes on."""

import json
import shutil
import signal
import time
from contextlib import closing
from dataclasses import asdict, replace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import prunegym.scripts.finetune
from prunegym.pruning.calibration.synthesis import distilled, records
from prunegym.pruning.data import load_splits
from prunegym.pruning.training import dense
from prunegym.pruning.training.loop import EpochRecord
from prunegym.scripts.finetune import Curves
from tests.scripts.conftest import start
from tests.scripts.test_main_job import METRICS, read, without_latency

pytestmark = pytest.mark.runs

FROM_A_TERMINAL = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from prunegym.scripts.cli import main
sys.exit(main(sys.argv[1:]))
"""


def wait_for(path, process):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


RATIOS = ["--static-ratio", "0.3", "--runtime-ratio", "0.4"]


@pytest.fixture(scope="module")
def pruned(material, tmp_path_factory):
    """A run of prune with gates, and one without; not to be changed."""
    folder = tmp_path_factory.mktemp("pruned")
    for name, ratios in {"gated": RATIOS, "static": RATIOS[:2]}.items():
        assert (
            prunegym.scripts.cli.main(["prune", *material.flags, *ratios, "--out", str(folder / name)]) == 0
        )
    return folder


@pytest.fixture
def flags(material, pruned, tmp_path):
    return [
        *("--compressed", pruned / "gated", "--model", material.model, "--epochs", "3"),
        *("--out", tmp_path / "out", "--device", "cpu", "--quiet"),
    ]


@pytest.fixture
def learned(monkeypatch):
    """The arguments of each fine-tuning."""
    seen, finetune_ = [], prunegym.scripts.finetune.finetune_

    def note(model, images, config, **settings):
        seen.append({"images": images, **asdict(config), **settings})
        return finetune_(model, images, config, **settings)

    monkeypatch.setattr(prunegym.scripts.finetune, "finetune_", note)
    return seen


def test_everything_is_written_and_the_metrics_are_printed(
    run_cli, material, pruned, flags, learned, tmp_path
):
    outcome = run_cli("finetune", *flags, "--weights", material.weights, "--json")
    assert outcome.code == 0, outcome.err
    assert learned[0]["teacher"] is None
    out = tmp_path / "out"
    metrics = read(out / "metrics.json")
    assert json.loads(outcome.out) == metrics
    assert list(metrics["rows"]) == ["dense", "before", "after"]
    assert all(set(row) == METRICS for row in metrics["rows"].values())
    assert metrics["gated_groups"] == {"dense": 0, "before": 2, "after": 2}
    source = read(pruned / "gated" / "metrics.json")["rows"]
    assert without_latency(metrics["rows"]["before"]) == without_latency(source["pruned"])
    assert without_latency(metrics["rows"]["dense"]) == without_latency(source["dense"])
    config = read(out / "config.json")
    assert (config["epochs"], config["part"], config["learn"]) == (3, "all", "labels")
    assert config["data"] == f"npz:{material.data}"


def test_the_curves_hold_each_epoch(run_cli, flags, tmp_path):
    assert run_cli("finetune", *flags).code == 0
    (file,) = (tmp_path / "out" / "tensorboard").iterdir()
    events = EventAccumulator(str(file)).Reload()
    epochs = read(tmp_path / "out" / "metrics.json")["epochs"]
    for tag in ("loss", "learning_rate"):
        found = events.Scalars(f"finetune/{tag}")
        assert [one.step for one in found] == [1, 2, 3]
        assert [one.value for one in found] == pytest.approx([epoch[tag] for epoch in epochs])


def test_validation_images_are_left_out_and_looked_at_where_asked(
    run_cli, material, flags, learned, tmp_path
):
    assert run_cli("finetune", *flags, "--validate").code == 0
    (asked,) = learned
    network = prunegym.scripts.finetune.load_compressed(
        flags[1] / "compressed", network=material.model
    ).network
    splits = load_splits(f"npz:{material.data}", network)
    assert torch.equal(asked["validation"].images, splits.validation.images)
    found = {image.numpy().tobytes() for image in asked["images"].images}
    held_out = {image.numpy().tobytes() for part in (splits.test, splits.validation) for image in part.images}
    assert found.isdisjoint(held_out)
    assert len(found) == len(material.arrays()["train_labels"]) - len(splits.validation)
    epochs = read(tmp_path / "out" / "metrics.json")["epochs"]
    (file,) = (tmp_path / "out" / "tensorboard").iterdir()
    curve = EventAccumulator(str(file)).Reload().Scalars("finetune/accuracy")
    assert [one.value for one in curve] == pytest.approx([epoch["accuracy"] for epoch in epochs])
    assert 0 < epochs[-1]["accuracy"] <= 1


def test_statistics_alone_can_be_reestimated(run_cli, pruned, flags, tmp_path):
    given = ["--epochs", "0", "--batch-norms", "reestimated", "--json"]
    outcome = run_cli("finetune", *flags, *given)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["epochs"] == []
    one, other = (
        load_file(run / "compressed" / "model.safetensors") for run in (pruned / "gated", tmp_path / "out")
    )
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    assert {name.rpartition(".")[2] for name in changed} == {"running_mean", "running_var"}


def test_latency_is_that_of_the_networks_as_they_are_deployed(run_cli, material, flags, monkeypatch):
    timed = {}
    monkeypatch.setattr(
        prunegym.scripts.finetune,
        "measure_latency",
        lambda models, *_, **__: timed.update(models) or dict.fromkeys(models, 1.5),
    )
    assert run_cli("finetune", *flags, "--weights", material.weights).code == 0
    assert list(timed) == ["dense", "before", "after"]
    for network in timed.values():
        assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_only_weights_and_evaluation_differ_and_it_is_evaluated_alike(
    run_cli, material, pruned, flags, tmp_path
):
    assert run_cli("finetune", *flags).code == 0
    before, after = (
        read(run / "compressed" / "structure.json") for run in (pruned / "gated", tmp_path / "out")
    )
    differing = {name for name in before if before[name] != after[name]}
    assert differing == {"weights_sha256", "evaluation"}
    again = run_cli("evaluate", "--compressed", tmp_path / "out", "--model", material.model, "--json")
    row = read(tmp_path / "out" / "metrics.json")["rows"]["after"]
    assert without_latency(json.loads(again.out)) == without_latency(row)
    assert without_latency(after["evaluation"]) == without_latency(row)


def test_without_weights_there_is_no_dense_row(run_cli, flags):
    outcome = run_cli("finetune", *flags, "--json")
    assert list(json.loads(outcome.out)["rows"]) == ["before", "after"]
    outcome = run_cli("finetune", *flags, "--overwrite")
    assert outcome.code == 0
    assert "before" in outcome.out
    assert "dense" not in outcome.out


def test_all_images_but_the_test_images_are_learned_from(run_cli, material, flags, learned):
    assert run_cli("finetune", *flags).code == 0
    network = prunegym.scripts.finetune.load_compressed(
        flags[1] / "compressed", network=material.model
    ).network
    splits = load_splits(f"npz:{material.data}", network)
    found = {image.numpy().tobytes() for image in learned[0]["images"].images}
    assert len(found) == len(learned[0]["images"]) == len(material.arrays()["train_labels"])
    assert found.isdisjoint(image.numpy().tobytes() for image in splits.test.images)


def test_flags_say_how_it_is_learned(run_cli, material, flags, learned, tmp_path):
    how = {"lr": 0.01, "batch-size": 32, "shift": 1, "seed": 4, "part": "gates", "learn": "distillation"}
    how |= {"optimizer": "adamw", "schedule": "linear", "weight-decay": 0.1, "precision": "bfloat16"}
    how |= {"batch-norms": "trained"}
    given = [part for name, value in how.items() for part in (f"--{name}", value)]
    assert run_cli("finetune", *flags, *given, "--flip", "--weights", material.weights).code == 0
    (asked,) = learned
    expected = {"epochs": 3, "learning_rate": 0.01, "batch_size": 32, "shift": 1, "seed": 4, "flip": True}
    expected |= {"optimizer": "adamw", "schedule": "linear", "weight_decay": 0.1, "precision": "bfloat16"}
    expected |= {"batch_norms": "trained"}
    assert {name: asked[name] for name in expected} == expected
    assert asked["part"] == "gates"
    assert asked["teacher"] is not None
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**how, "flip": True, "weights": str(material.weights)}))
    assert run_cli("finetune", *flags, "--config", tmp_path / "c.yaml", "--overwrite").code == 0
    assert {name: learned[1][name] for name in expected} == expected


def test_without_images_it_follows_the_dense_network_on_synthetic_ones(
    run_cli, material, flags, learned, monkeypatch, tmp_path
):
    monkeypatch.setenv("PRUNEGYM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(records, "MAX_IMAGES", 48)
    monkeypatch.setattr(distilled, "STEPS", 3)
    none = ["--data", "none", "--learn", "distillation", "--weights", material.weights, "--json"]
    outcome = run_cli("finetune", *flags, *none)
    assert outcome.code == 0, outcome.err
    rows = json.loads(outcome.out)["rows"]
    assert all(row["accuracy"] is None and row["agreement"] is not None for row in rows.values())
    assert len(learned[0]["images"]) == 48 + 24 + 24
    images = ["--eval-data", f"npz:{material.data}", "--overwrite"]
    rows = json.loads(run_cli("finetune", *flags, *none, *images).out)["rows"]
    assert all(row["accuracy"] is not None and row["agreement"] is None for row in rows.values())
    assert len(learned[1]["images"]) == 48 + 24 + 24
    assert read(tmp_path / "out" / "compressed" / "structure.json")["data"] == f"npz:{material.data}"


def test_the_digits_are_pruned_at_run_time_and_fine_tuned(run_cli, monkeypatch, tmp_path):
    monkeypatch.setenv("PRUNEGYM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dense, "_DIGITS_CONFIG", replace(dense._DIGITS_CONFIG, epochs=2))
    assert run_cli("prune", "--runtime-ratio", "0.6", "--out", tmp_path / "a", "--quiet").code == 0
    given = ["--compressed", tmp_path / "a", "--learn", "distillation", "--epochs", "2", "--shift", "1"]
    outcome = run_cli("finetune", *given, "--out", tmp_path / "b", "--quiet", "--json")
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)
    rows = record["rows"]
    assert list(rows) == ["dense", "before", "after"]
    assert rows["after"]["accuracy"] > rows["before"]["accuracy"] + 0.02
    assert rows["after"]["macs"] == rows["before"]["macs"] < rows["dense"]["macs"]
    assert record["gated_groups"]["after"] > 0


class TestInterruption:
    @pytest.fixture
    def command(self, flags):
        slow = ["--epochs", "40", "--flip", "--shift", "1"]
        return ["finetune", *flags, *slow]

    def test_a_killed_run_resumes_to_the_very_same_result(self, run_cli, command, tmp_path):
        process = start("-c", FROM_A_TERMINAL, *command)
        wait_for(tmp_path / "out" / "checkpoint" / "state.safetensors", process)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "out" / "metrics.json").exists()
        assert run_cli(*command, "--resume").code == 0
        assert run_cli(*command, "--out", tmp_path / "whole").code == 0
        for name in ("metrics.json", "compressed/model.safetensors"):
            assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    def test_an_interrupted_run_says_in_one_line_how_to_go_on(self, command, tmp_path):
        process = start("-c", FROM_A_TERMINAL, *command)
        wait_for(tmp_path / "out" / "config.json", process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (130, "")
        assert err.splitlines() == ["prunegym: interrupted; the same command with --resume goes on"]

    def test_a_cut_off_checkpoint_is_refused_and_the_run_left_as_it_is(
        self, run_cli, flags, monkeypatch, tmp_path
    ):
        assert run_cli("finetune", *flags).code == 0
        file = tmp_path / "out" / "checkpoint" / "state.safetensors"
        file.write_bytes(file.read_bytes()[:3000])
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        monkeypatch.setattr("sys.argv", ["another", "command"])
        outcome = run_cli("finetune", *flags, "--resume")
        assert outcome.code == 2
        assert outcome.err.splitlines() == [
            f"prunegym: {file} is truncated, damaged, or no checkpoint; start afresh"
        ]
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    def test_only_the_same_run_is_resumed(self, run_cli, flags, refused, tmp_path):
        assert run_cli("finetune", *flags, "--resume").code == 0  # there is none, so one begins
        assert "already holds a run; give another --out, or --resume" in refused("finetune", *flags)
        line = refused("finetune", *flags, "--resume", "--epochs", "9")
        assert "was begun with another epochs; repeat its flags" in line
        assert run_cli("finetune", *flags, "--resume").code == 0


class TestBadInput:
    @pytest.mark.parametrize(
        ("argv", "expected"),
        [
            (["--part", "gate"], "invalid choice: 'gate'"),
            (["--learn", "label"], "invalid choice: 'label'"),
            (["--epochs", "0"], "epochs must be 1 or more, got 0"),
            (["--optimizer", "adam"], "invalid choice: 'adam'"),
            (["--schedule", "step"], "invalid choice: 'step'"),
            (["--precision", "half"], "invalid choice: 'half'"),
            (["--batch-norms", "frozen"], "invalid choice: 'frozen'"),
            (["--weight-decay", "-1"], "--weight-decay: must be a number from 0 to 100, got"),
            (["--batch-size", "0"], "--batch-size: must be a whole number from 1 to 1000000"),
            (["--shift", "-1"], "--shift: must be a whole number from 0 to 10000"),
            (["--lr", "0"], "--lr: must be a number from 1e-12 to 1000, got"),
            (["--lr", "nan"], "--lr: must be a number from 1e-12 to 1000, got"),
            (["--lr", "fast"], "--lr: must be a number from 1e-12 to 1000, got"),
            (["--epoch", "3"], "unknown argument --epoch; did you mean --epochs?"),
            (["--input-size", "1", "8", "8"], "unknown argument --input-size"),
            (["--data", "none"], "there are no labels without images"),
            (["--data", "npz:nowhere.npz"], "there is no data file nowhere.npz"),
            (["--data", "digit"], "no kind of data named 'digit'. Did you mean 'digits'?"),
            (["--eval-data", "digits"], "--eval-data goes with --data none"),
            (["--learn", "distillation"], "is untrained: name its trained weights with --weights"),
            (["--weights", "nowhere.th"], "there is no weights file nowhere.th"),
            (["--device", "warp"], "--device warp cannot be used here"),
            (["--compressed", "nowhere"], "cannot read nowhere/structure.json"),
            (["--model", "cifar_resnet20"], "the recorded structure does not fit ResNet"),
        ],
    )
    def test_wrong_words(self, refused, flags, argv, expected):
        assert expected in refused("finetune", *flags, *argv)

    def test_gates_where_there_are_none(self, refused, flags, pruned):
        argv = ["--compressed", pruned / "static", "--part", "gates"]
        assert "has no runtime gates to train" in refused("finetune", *flags, *argv)

    def test_both_folders_are_needed(self, refused, pruned):
        assert "name the folder for the results with --out" in refused("finetune", "--compressed", pruned)
        assert "with --compressed" in refused("finetune", "--out", "/tmp/x")

    @pytest.mark.parametrize("place", ["", "compressed", "compressed/deeper"])
    @pytest.mark.parametrize("asked", ["", "compressed"])
    def test_the_source_is_never_replaced(self, refused, flags, pruned, tmp_path, place, asked):
        run = shutil.copytree(pruned / "gated", tmp_path / "run")
        argv = ["--compressed", run / asked, "--out", run / place, "--overwrite"]
        line = refused("finetune", *flags, *argv)
        assert "must stay as it is; give an --out elsewhere" in line

    def test_an_out_that_is_no_run_is_left_alone(self, refused, flags, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("years of work")
        line = refused("finetune", *flags, "--overwrite")
        assert "is not the folder of a run and is left alone" in line


def test_a_curve_has_each_epoch_once_however_often_it_was_written(tmp_path):
    for epochs in ((1, 2), (2, 3)):
        with closing(Curves(tmp_path)) as curves:
            for number in epochs:
                curves.write(EpochRecord(number, loss=1 / number, learning_rate=0.1))
        time.sleep(1.0 - time.time() % 1.0)  # event files are ordered by the second they were opened in
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("finetune/loss")] == [1, 2, 3]
