"""`prunegym export` as a user runs it: the files, the record, and what it refuses."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from prunegym.pruning.storage.compressed import load_compressed

pytestmark = pytest.mark.runs


@pytest.fixture(scope="module")
def pruned(material, tmp_path_factory):
    """The folder of a network with gates."""
    from prunegym.scripts.cli import main

    out = tmp_path_factory.mktemp("pruned") / "run"
    flags = ["--static-ratio", "0.3", "--runtime-ratio", "0.4", "--json", "--out", str(out)]
    assert main(["prune", *material.flags, *flags]) == 0
    return out


def test_files_and_record(run_cli, material, pruned, tmp_path):
    flags = ["--format", "both", "--out", tmp_path / "out"]
    outcome = run_cli("export", "--compressed", pruned, "--model", material.model, *flags, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    record = json.loads(outcome.out)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.onnx", "model.pt2"]
    assert record["gates"] == "masked"
    for form in ("onnx", "pt2"):
        assert record["compared"][form]["agreement"] == 1
        assert record["compared"][form]["images"] == 32
        size = record["rows"]["compressed"][f"{form}_bytes"]
        assert size == (tmp_path / "out" / f"model.{form}").stat().st_size
    metrics = json.loads((pruned / "metrics.json").read_text())["rows"]
    for ours, theirs in (("dense", "dense"), ("compressed", "pruned")):
        for key in ("macs", "params"):
            assert record["rows"][ours][key] == metrics[theirs][key]
    model = load_compressed(pruned / "compressed", network=material.model).model
    images = torch.from_numpy((material.arrays()["test_images"][:7, None] / 255.0 - 0.5) / 0.25).float()
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    (logits,) = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(images).numpy(), rtol=1e-4, atol=1e-4)
    (entry,) = onnx.load(tmp_path / "out" / "model.onnx").metadata_props
    assert json.loads(entry.value) == {
        "network": material.model,
        "input_shape": [1, 8, 8],
        "mean": [0.5],
        "std": [0.25],
        "gates": "masked",
    }


def test_the_table_says_that_gates_are_masks(run_cli, material, pruned, tmp_path):
    flags = ["--compressed", pruned, "--model", material.model, "--data", "none", "--out"]
    outcome = run_cli("export", *flags, tmp_path / "small.pt2", "--format", "pt2")
    assert outcome.code == 0, outcome.err
    assert "logits differ by at most" in outcome.out
    assert "gates are exported as masks" in outcome.out
    assert [path.name for path in tmp_path.iterdir()] == ["small.pt2"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "name the file or folder to write with --out"),
        (["--out", "m.pt2"], "m.pt2 does not go with --format onnx"),
        (["--out", "m.onnx", "--format", "both"], "m.onnx does not go with --format both"),
        (["--out", "m", "--format", "tflite"], "invalid choice: 'tflite'"),
        (["--out", "m", "--opset", "0"], "--opset: must be a whole number from 1 to 100"),
        (["--out", "m", "--data", "npz:nowhere.npz"], "there is no data file nowhere.npz"),
    ],
)
def test_wrong_words(refused, material, pruned, argv, expected):
    assert expected in refused("export", "--compressed", pruned, "--model", material.model, *argv)


def test_no_folder_or_a_strangers(refused, pruned, tmp_path):
    assert "with --compressed" in refused("export", "--out", tmp_path / "m")
    assert "cannot read" in refused("export", "--compressed", tmp_path, "--out", tmp_path / "m")
    line = refused("export", "--compressed", pruned, "--out", tmp_path / "m")
    assert "is not run unasked" in line


def test_a_file_that_is_there_is_kept(refused, material, pruned, tmp_path):
    (tmp_path / "model.onnx").write_text("years of work")
    flags = ["--compressed", pruned, "--model", material.model, "--out", tmp_path]
    assert "model.onnx exists; give another --out, or --overwrite" in refused("export", *flags)
    assert (tmp_path / "model.onnx").read_text() == "years of work"
