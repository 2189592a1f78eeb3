"""Fine-tuning by two processes that `accelerate launch` starts, on processors."""

import socket

import pytest
import torch
from safetensors.torch import load_file

import prunegym.scripts.cli
from tests.scripts.conftest import in_own_process
from tests.scripts.test_main_job import read, without_latency

pytestmark = pytest.mark.runs

pytest.importorskip("accelerate")


def launch(*argv):
    """Run fine-tuning in two processes that a launcher starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = [
        *("--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", port),
        *("--mixed_precision", "no", "--dynamo_backend", "no"),  # else it says that it takes these
    ]
    launcher = ["-m", "accelerate.commands.launch", *settings]  # what `accelerate launch` runs
    return in_own_process(*launcher, "--module", "prunegym.scripts.finetune", *argv)


@pytest.fixture(scope="module")
def flags(material, tmp_path_factory):
    """Of a network without gates: a choice between units leaps where two runs differ in rounding."""
    pruned = tmp_path_factory.mktemp("pruned") / "run"
    assert (
        prunegym.scripts.cli.main(["prune", *material.flags, "--static-ratio", "0.3", "--out", str(pruned)])
        == 0
    )
    how = ["--epochs", "4", "--batch-size", "17", "--flip", "--shift", "1", "--batch-norms", "reestimated"]
    learn = ["--learn", "distillation", "--weights", material.weights, "--validate"]
    return ["--compressed", pruned, "--model", material.model, *how, *learn, "--device", "cpu", "--quiet"]


@pytest.fixture(scope="module")
def alone(flags, tmp_path_factory):
    """The folder of a run by one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    assert prunegym.scripts.cli.main([str(part) for part in ["finetune", *flags, "--out", out]]) == 0
    return out


def test_two_processes_learn_what_one_does_and_one_of_them_writes(alone, flags, tmp_path):
    code, out, err = launch(*flags, "--out", tmp_path / "two")
    assert code == 0, err
    assert out.count("learns from distillation") == err.count("written to") == 1
    one, two = (load_file(run / "compressed" / "model.safetensors") for run in (alone, tmp_path / "two"))
    before = load_file(flags[1] / "compressed" / "model.safetensors")
    assert max(float((one[name] - before[name]).abs().max()) for name in one) > 1e-2
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)
    first, second = (read(run / "metrics.json") for run in (alone, tmp_path / "two"))
    assert without_latency(second["rows"]["after"]) == without_latency(first["rows"]["after"])
    for single, shared in zip(first["epochs"], second["epochs"], strict=True):
        assert shared == pytest.approx(single, rel=1e-4)
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1


def test_two_processes_go_on_where_one_was_interrupted(run_cli, alone, flags, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def interrupt(self, epoch):
        if epoch.number == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("prunegym.scripts.finetune.Curves.write", interrupt)
        assert run_cli("finetune", *flags, "--out", out).code == 130
    code, _, err = launch(*flags, "--out", out, "--resume")
    assert code == 0, err
    one, two = (load_file(run / "compressed" / "model.safetensors") for run in (alone, out))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)
    assert [epoch["number"] for epoch in read(out / "metrics.json")["epochs"]] == [1, 2, 3, 4]
