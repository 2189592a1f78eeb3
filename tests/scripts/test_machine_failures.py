"""What the machine refuses ends a command in one true line, and leaves nothing half-written."""

import os
import resource
import shutil

import pytest
import torch

import prunegym.scripts.finetune
import prunegym.scripts.train_per_input
from prunegym.agents import EpisodeLog
from prunegym.pruning.networks import weights
from tests.limits import limited
from tests.scripts.conftest import QUICK

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("no_pictures")]

FINETUNE = ["--epochs", "2", "--quiet"]


@pytest.fixture
def commands(material, finished_run, tmp_path):
    """Command lines of the verbs that write a folder of results, `tmp_path / "out"`."""
    compressed = ["--compressed", finished_run / "compressed", "--model", material.model]
    out = ["--out", tmp_path / "out"]
    learning = [*material.flags, *out]
    return {
        "train": ["train", *learning, "--budget", "macs=0.5", "--episodes", 12, "--baselines", *QUICK],
        "train-per-input": ["train-per-input", *learning, "--budget", "macs=0.7", "--episodes", 300],
        "prune": ["prune", *learning, "--budget", "macs=0.5"],
        "finetune": ["finetune", *compressed, "--weights", material.weights, *FINETUNE, *out],
        "export": ["export", *compressed, *out],
    }


@pytest.fixture
def failing(run_cli, commands):
    """Run a verb, check that it ends in one line, and return the line."""

    def run(verb):
        outcome = run_cli(*commands[verb])
        assert outcome.code == 2, outcome
        assert outcome.err.startswith("prunegym: ")
        assert outcome.err.count("\n") == 1, outcome.err
        return outcome.err

    return run


@pytest.mark.parametrize(
    ("verb", "file"),
    [
        ("train", "out/"),
        ("train-per-input", "out/"),
        ("prune", "out/compressed"),
        ("finetune", "out/checkpoint/state.safetensors"),
        ("export", "out/model.onnx"),
    ],
)
def test_a_disk_that_takes_no_more(failing, tmp_path, verb, file):
    with limited(resource.RLIMIT_FSIZE, 3000):
        line = failing(verb)
    assert line.startswith(f"prunegym: cannot write {tmp_path / file}")
    assert ": file too large; raise the limit on the size of files (ulimit -f), or write elsewhere" in line
    assert [path for path in tmp_path.rglob(".*") if path.name != "in-use"] == []


def removing(function, folder):
    """Return a function that does the same after it has removed a folder, at its second call."""
    calls = []

    def removing_first(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            shutil.rmtree(folder)
        return function(*args, **kwargs)

    return removing_first


@pytest.mark.parametrize("part", ["out", "out/tensorboard"])
@pytest.mark.parametrize("verb", ["train", "train-per-input", "finetune"])
def test_a_folder_that_disappears_meanwhile(failing, tmp_path, monkeypatch, verb, part):
    gone = tmp_path / part
    if verb == "train":
        monkeypatch.setattr(EpisodeLog, "append", removing(EpisodeLog.append, gone))
    elif verb == "finetune":
        curves = prunegym.scripts.finetune.Curves
        monkeypatch.setattr(curves, "write", removing(curves.write, gone))
    else:
        appending = prunegym.scripts.train_per_input._appending
        monkeypatch.setattr(
            prunegym.scripts.train_per_input, "_appending", lambda path: removing(appending(path), gone)
        )
    assert "No such file or directory: " in failing(verb)


def test_too_little_memory(failing, monkeypatch):
    monkeypatch.setattr(weights, "load_file", lambda path: torch.empty(10**15))
    line = failing("prune")
    assert line.startswith("prunegym: ran out of memory (")
    assert "use smaller batches or images, another --device, or a machine with more of it" in line


def test_too_many_open_files(failing, material, monkeypatch):
    def load(path):
        with limited(resource.RLIMIT_NOFILE, 3):
            path.open()

    monkeypatch.setattr(weights, "load_file", load)
    said = "too many open files; raise the limit on open files (ulimit -n)"
    assert failing("prune") == f"prunegym: cannot open {material.weights}: {said}\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_of_someone_elses(failing, material, commands, tmp_path):
    secret = shutil.copy(material.weights, tmp_path / "secret.safetensors")
    secret.chmod(0)
    commands["prune"] += ["--weights", secret]
    said = "permission denied; change its permissions, or name another"
    assert failing("prune") == f"prunegym: cannot open {secret}: {said}\n"


def test_a_user_without_a_home(run_cli, commands, monkeypatch):
    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "XDG_CACHE_HOME", "PRUNEGYM_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert run_cli(*commands["prune"]).code == 0  # it caches nothing
    line = "prunegym: this user has no home for the cache; set PRUNEGYM_CACHE to a folder\n"
    assert run_cli("describe") == (2, "", line)  # a network that is trained once, and kept


def test_a_home_that_is_unknown_is_no_folder_of_images(commands, failing):
    commands["prune"] += ["--data", "npz:~nobody-of-this-name/x.npz"]
    assert failing("prune") == "prunegym: there is no data file ~nobody-of-this-name/x.npz\n"
