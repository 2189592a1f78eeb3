import json
import logging
import warnings

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from prunegym.pruning.calibration.statistics import real_images
from prunegym.pruning.errors import ExportError, UnknownNameError
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.storage import export
from prunegym.pruning.storage.export import compare, export_network
from tests.pruning.example_networks import EXAMPLES
from tests.pruning.plans import ratios
from tests.pruning.runtime.test_per_input import telling_apart


def compressed(name, static=0.3, runtime=0.0, hidden=None):
    chosen = EXAMPLES[name]
    model = chosen.model()
    network = PrunableNetwork(model, real_images(model, [chosen.images(8)]))
    plan = CompressionPlan(
        {g.name: ratios(static, 0.0 if g.ungated else runtime) for g in network.graph.prunable}
    )
    made = network.apply(plan).model.eval()
    if hidden is not None:
        with torch.no_grad():
            telling_apart(made, chosen.images(8), hidden)
    return made


def run_onnx(path, images):
    session = onnxruntime.InferenceSession(path)
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def run_pt2(path, images):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.load(path).module()(images).detach()


RUN = {"onnx": run_onnx, "pt2": run_pt2}


@pytest.mark.parametrize(
    ("name", "runtime", "hidden"),
    [
        ("padded", 0.0, None),
        ("depthwise", 0.5, None),
        ("view-constant", 0.0, None),
        ("residual", 0.4, (5,)),
    ],
)
def test_files_compute_what_the_network_does_for_any_number_of_images(tmp_path, name, runtime, hidden):
    model = compressed(name, runtime=runtime, hidden=hidden)
    images = EXAMPLES[name].images(9)
    paths = {form: tmp_path / f"model.{form}" for form in RUN}
    with torch.no_grad():
        expected = model(images)
    found = export_network(model, paths, images, metadata={"network": name})
    for form, path in paths.items():
        assert found[form].differing == 0
        for count in (1, 3, 9):
            result = RUN[form](path, images[:count])
            torch.testing.assert_close(result, expected[:count], rtol=1e-4, atol=1e-4)


def test_a_file_says_what_it_holds_and_nothing_of_this_machine(tmp_path, capfd, caplog):
    path = tmp_path / "model.onnx"
    model, images = compressed("residual", runtime=0.5), EXAMPLES["residual"].images(6)
    export_network(model, {"onnx": path}, images, metadata={"mean": [0.5]}, opset=18)
    assert capfd.readouterr() == ("", "")
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]
    read = onnx.load(path)
    (entry,) = read.metadata_props
    assert json.loads(entry.value) == {"mean": [0.5], "gates": "masked"}
    assert [one.version for one in read.opset_import if one.domain == ""] == [18]
    assert b".py" not in path.read_bytes()
    assert [one.name for one in tmp_path.iterdir()] == ["model.onnx"]


def test_neither_images_nor_paths_of_this_machine_are_in_the_file(tmp_path):
    model, images = compressed("residual"), EXAMPLES["residual"].images(6)
    export_network(model, {"pt2": tmp_path / "m.pt2"}, images, metadata={})
    written = (tmp_path / "m.pt2").read_bytes()
    assert images[0].numpy().tobytes() not in written
    assert b".py" not in written


class Disagreeing(nn.Module):
    """Gives other logits, from the first image on of which there are several."""

    def __init__(self, opened, off):
        super().__init__()
        self.opened, self.off = opened, off

    def forward(self, images):
        logits = self.opened(images)
        return logits + self.off if len(images) > 1 else logits


@pytest.mark.parametrize("off", [1.0, torch.nan])
def test_what_disagrees_is_not_written(tmp_path, monkeypatch, off):
    opened = export.FORMATS["onnx"].open
    wrong = export.Format(export.FORMATS["onnx"].write, lambda path: Disagreeing(opened(path), off))
    monkeypatch.setitem(export.FORMATS._entries, "onnx", wrong)
    paths = {"pt2": tmp_path / "m.pt2", "onnx": tmp_path / "m.onnx"}
    with pytest.raises(
        ExportError, match=r"m\.onnx disagrees with the network on 33\.3% of 6 images, by up to"
    ):
        export_network(compressed("residual"), paths, EXAMPLES["residual"].images(6), metadata={})
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_by_hand():
    images = torch.tensor([[3.0, 1.0], [2.0, 4.0], [5.0, 1.0], [1.0, 2.0], [10.0, 0.0], [0.0, 1.0]])
    off = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.009, 0.0], [0.0, 0.02]])
    other = nn.Module()
    calls = []

    def forward(batch):
        calls.append(len(batch))
        return batch + (off[:1] if len(batch) == 1 else off[1 : 1 + len(batch)])

    other.forward = forward
    found = compare(nn.Identity(), other, images)
    assert calls == [1, 1, 1, 1, 2]
    assert (found.images, found.difference) == (6, 3.0)
    assert found.differing == pytest.approx(1 / 6)
    assert found.agreement == 1


class OfTwoImages(nn.Module):
    """Runs on batches of two images alone."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)

    def forward(self, x):
        return self.conv(x).view(2, 3, -1).mean(2)


def test_what_cannot_be_exported_is_refused_in_one_line_and_without_noise(tmp_path, capfd):
    model = OfTwoImages()
    with pytest.raises(
        ExportError, match="OfTwoImages cannot be exported for any number of images: "
    ) as caught:
        export_network(model, {"onnx": tmp_path / "m.onnx"}, torch.randn(3, 1, 8, 8), metadata={})
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opset", [3, 99])
def test_an_opset_that_there_is_not(tmp_path, capfd, opset):
    images = EXAMPLES["residual"].images(5)
    with pytest.raises(ExportError, match=f"cannot be written as ONNX of opset {opset}: ") as caught:
        export_network(
            EXAMPLES["residual"].model(), {"onnx": tmp_path / "m"}, images, metadata={}, opset=opset
        )
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format(tmp_path):
    with pytest.raises(UnknownNameError, match="no format named 'tflite'"):
        export_network(EXAMPLES["residual"].model(), {"tflite": tmp_path / "m"}, torch.zeros(1), metadata={})
