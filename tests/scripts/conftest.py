"""The command line on a network of a few hundred weights, so that a whole run takes a second."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import prunegym.agents.learning.tensorboard
import prunegym.pruning.evaluation.comparison
import prunegym.scripts.evaluate
import prunegym.scripts.export
import prunegym.scripts.finetune
import prunegym.scripts.train
import prunegym.scripts.train_per_input
from prunegym.pruning.networks.registry import resolve_network
from prunegym.scripts.cli import main
from tests.pruning.example_networks import randomised

ROOT = Path(__file__).parents[2]
# of the default algorithm, where how well it learns does not matter
QUICK = ("--hyper", "n_epochs=2", "--hyper", "imagined_episodes=64")

NETWORK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.a = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(12, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.c = nn.Sequential(nn.Conv2d(8, 10, 3, stride=2, bias=False), nn.BatchNorm2d(10), nn.ReLU())
        self.linear = nn.Linear(10, 4)

    def forward(self, x):
        x = self.stem(x)
        return self.linear(self.c(torch.relu(x + self.b(self.a(x)))).mean((2, 3)))
"""


class Material(NamedTuple):
    """Files that tests read and never change."""

    folder: Path
    model: str
    weights: Path
    data: Path

    @property
    def flags(self) -> list[str]:
        return [
            *("--model", self.model, "--weights", str(self.weights), "--data", f"npz:{self.data}"),
            *("--input-size", "1", "8", "8", "--mean", "0.5", "--std", "0.25", "--device", "cpu", "--quiet"),
        ]

    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(self.data) as archive:
            return dict(archive)


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _no_stopwatch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency is measured for a quarter of a second a network; only the tests in their own process do."""
    for module in (
        prunegym.pruning.evaluation.comparison,
        prunegym.scripts.evaluate,
        prunegym.scripts.export,
        prunegym.scripts.finetune,
    ):
        monkeypatch.setattr(module, "measure_latency", lambda models, *_, **__: dict.fromkeys(models, 1.5))


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out pictures: they take a second a run, and have tests of their own."""
    for module in (prunegym.scripts.train, prunegym.scripts.train_per_input):
        monkeypatch.setattr(module, "write_pictures", lambda out: {})
    monkeypatch.setattr(
        prunegym.agents.learning.tensorboard.TensorBoardCallback, "_pictures", lambda self: {}
    )


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    folder = tmp_path_factory.mktemp("material")
    (folder / "net.py").write_text(NETWORK)
    name = f"{folder / 'net.py'}:Net"
    network = resolve_network(name, input_size=(1, 8, 8), mean=(0.5,), std=(0.25,))
    model = randomised(network.build())
    arrays = _arrays(model)
    save_file(model.state_dict(), folder / "weights.safetensors")
    np.savez(folder / "data.npz", **arrays)
    return Material(folder, name, folder / "weights.safetensors", folder / "data.npz")


@torch.no_grad()
def _arrays(model: Any) -> dict[str, np.ndarray]:
    """Return images and labels; the model is changed to give every class its share, and is mostly right."""
    pixels = np.random.default_rng(0).integers(0, 256, (220, 8, 8), dtype=np.uint8)
    logits = model((torch.from_numpy(pixels[:, None]).float() / 255 - 0.5) / 0.25)
    model.linear.bias -= logits.mean(0)
    labels = (logits - logits.mean(0)).argmax(1).numpy()
    labels[::6] = (labels[::6] + 1) % 4
    train, test = slice(160), slice(160, None)
    return {
        **{"train_images": pixels[train], "train_labels": labels[train]},
        **{"test_images": pixels[test], "test_labels": labels[test]},
    }


@pytest.fixture
def run_cli(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """Run the command line in this process, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: object) -> Outcome:
        capfd.readouterr()
        code = main([str(part) for part in argv])
        return Outcome(code, *capfd.readouterr())

    return run


def start(*argv: object, **settings: Any) -> subprocess.Popen[str]:
    """Start a command in a process of its own, at the project's root."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *(str(part) for part in argv)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **{**pipes, **settings})


def in_own_process(*argv: object) -> Outcome:
    process = start(*argv)
    out, err = process.communicate(timeout=300)
    return Outcome(process.returncode, out, err)


@pytest.fixture(scope="session")
def finished_run(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten episodes, by `python scripts/train.py`; not to be changed."""
    out = tmp_path_factory.mktemp("finished") / "run"
    rounds = ["--hyper", "evaluated_episodes=8", *QUICK]  # after which a checkpoint is written
    flags = ["--budget", "macs=0.5", "--episodes", "10", *rounds, "--json", "--out", out]
    outcome = in_own_process("scripts/train.py", *material.flags, *flags)
    assert outcome.code == 0, outcome.err
    (out.parent / "stdout.json").write_text(outcome.out)
    return out


@pytest.fixture
def refused(run_cli: Callable[..., Outcome], tmp_path: Path) -> Callable[..., str]:
    """Run the command line, check that it refuses in one line and writes nothing, and return the line."""

    def written() -> set[Path]:
        return {path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts}  # which is Python's

    def run(*argv: object, code: int = 2) -> str:
        before = written()
        outcome = run_cli(*argv)
        assert outcome.code == code, outcome
        assert outcome.out == ""
        assert outcome.err.startswith("prunegym: ")
        assert outcome.err.count("\n") == 1, outcome.err
        assert "Traceback" not in outcome.err
        assert written() == before
        return outcome.err

    return run


@pytest.fixture
def resnet20(data_file: Callable[[str], Path]) -> list[object]:
    """Return the flags that name a real ResNet-20 and real images."""
    weights, data = data_file("weights/resnet20-12fca82f.th"), data_file("cifar10/cifar10_subset.npz")
    return ["--model", "cifar_resnet20", "--weights", weights, "--data", f"npz:{data}"]
