"""Folders of image files through the command line: the same figures as from the same images in an array."""

import json

import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("no_pictures")]

PARTS = {"train": "train", "val": "test"}  # folder -> part of an archive


def unpacked(arrays, folder, names):
    """Write arrays as lossless files, in each class's folder."""
    for part, key in PARTS.items():
        for name in names:
            (folder / part / name).mkdir(parents=True)
        pairs = zip(arrays[f"{key}_images"], arrays[f"{key}_labels"], strict=True)
        for number, (pixels, label) in enumerate(pairs):
            Image.fromarray(pixels).save(folder / part / names[label] / f"{number:04}.png")
    return folder


def without_latency(row):
    return {name: value for name, value in row.items() if name != "latency_ms"}


@pytest.fixture
def folder(material, tmp_path):
    return unpacked(material.arrays(), tmp_path / "images", ["0", "1", "2", "3"])


@pytest.fixture
def flags(material, folder):
    return [*material.flags, "--data", f"folder:{folder}"]


def test_real_images_are_scored_as_from_an_array(run_cli, data_file, tmp_path):
    file, weights = data_file("cifar10/cifar10_subset.npz"), data_file("weights/resnet20-12fca82f.th")
    with np.load(file) as archive:
        arrays = {name: archive[name][: 60 if "train" in name else 150] for name in archive.files}
    np.savez(tmp_path / "images.npz", **arrays)
    unpacked(arrays, tmp_path / "images", [str(number) for number in range(10)])
    found = []
    for data in (f"npz:{tmp_path / 'images.npz'}", f"folder:{tmp_path / 'images'}"):
        given = ["--model", "cifar_resnet20", "--weights", weights, "--data", data, "--device", "cpu"]
        outcome = run_cli("evaluate", *given, "--json", "--quiet")
        assert outcome.code == 0, outcome.err
        found.append(json.loads(outcome.out))
    assert without_latency(found[0]) == without_latency(found[1])
    assert found[0]["accuracy"] > 0.85


def test_a_network_is_trained_evaluated_and_fine_tuned_on_files(
    run_cli, material, folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(folder.parent)
    run = tmp_path / "run"
    given = [*material.flags, "--data", f"folder:{folder.name}"]
    outcome = run_cli("train", *given, "--episodes", 3, "--baselines", "--json", "--out", run)
    assert outcome.code == 0, outcome.err
    learned = json.loads(outcome.out)["rows"]["learned"]
    monkeypatch.chdir(tmp_path.parent)  # the network remembers where the images are
    outcome = run_cli("evaluate", "--compressed", run, "--model", material.model, "--json")
    assert outcome.code == 0, outcome.err
    assert without_latency(json.loads(outcome.out)) == without_latency(learned)
    tuned = [*("--compressed", run, "--model", material.model), "--epochs", 1, "--out", tmp_path / "tuned"]
    assert run_cli("finetune", *tuned, "--quiet").code == 0
    outcome = run_cli("evaluate", "--compressed", tmp_path / "tuned", "--model", material.model, "--json")
    rows = json.loads((tmp_path / "tuned" / "metrics.json").read_text())["rows"]
    assert without_latency(rows["before"]) == without_latency(learned)
    assert without_latency(json.loads(outcome.out)) == without_latency(rows["after"])


def test_what_decides_for_each_input_learns_from_files(run_cli, flags, tmp_path):
    budget = ["--budget", "macs=0.7", "--episodes", 300, "--rounds", 1, "--tune-epochs", 1]
    outcome = run_cli("train-per-input", *flags, *budget, "--json", "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert "per-input" in json.loads(outcome.out)["rows"]


def test_without_data_files_are_only_reported_on(run_cli, material, folder, tmp_path):
    given = [
        "--data",
        "none",
        "--eval-data",
        f"folder:{folder}",
        "--calibration",
        "noise",
        "--static-ratio",
        0.5,
    ]
    outcome = run_cli(
        "prune", *material.flags, *given, "--static-ratio", 0.5, "--json", "--out", tmp_path / "run"
    )
    assert outcome.code == 0, outcome.err
    dense = run_cli("evaluate", *material.flags, "--json")
    assert without_latency(json.loads(outcome.out)["rows"]["dense"]) == without_latency(json.loads(dense.out))


def test_classes_that_are_not_the_networks_are_refused_before_any_work(refused, flags, folder, tmp_path):
    for part in PARTS:
        (folder / part / "4").mkdir()
        Image.new("L", (8, 8)).save(folder / part / "4" / "a.png")
    said = refused("train", *flags, "--out", tmp_path / "run")
    assert "the images are of 5 classes, but the network has 4 outputs" in said


def test_a_damaged_file_is_named(refused, flags, folder, tmp_path):
    (folder / "val" / "2" / "zebra.jpg").write_bytes(b"\xff\xd8\xff nothing more")
    assert f"{folder}/val/2/zebra.jpg cannot be read as an image" in refused("evaluate", *flags)


def test_a_resumed_run_need_not_ask_for_a_download_again(run_cli, flags, tmp_path):
    given = ["train", *flags, "--episodes", 2, "--baselines", "--out", tmp_path / "run"]
    assert run_cli(*given, "--download").code == 0
    assert run_cli(*given, "--resume").code == 0


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_missing_images_are_fetched_only_if_asked(refused, material, tmp_path, kind):
    said = refused("evaluate", *material.flags, "--data", f"{kind}:{tmp_path}")
    assert f"there is no folder {tmp_path}/cifar-" in said
    assert "add --download to fetch it from" in said
