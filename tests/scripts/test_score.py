"""A regressor with three outputs by name: no labels, no logits, judged by a function of the user's."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunegym.pruning.networks.registry import resolve_network

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("no_pictures")]

NETWORK = """
import multiprocessing

import torch
from torch import nn
from torch.nn import functional


class Regressor(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.place = nn.Conv2d(12, 4, 1)
        self.size = nn.Linear(12, 2)

    def forward(self, x):
        x = self.body(self.stem(x))
        return {"place": self.place(x), "sizes": [self.size(x.mean((2, 3))), functional.relu(x).sum()]}


def images():
    return torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def score(model):
    from safetensors.torch import load_model

    dense = Regressor().eval()
    load_model(dense, WEIGHTS)
    with torch.no_grad():
        wanted, found = dense(images()), model(images())
    assert not model.training
    return -float((wanted["place"] - found["place"]).square().mean())


def shy(model):
    return float("nan")


def broken(model):
    return model.no_such_thing


def only_at_home(model):
    return float("nan") if multiprocessing.parent_process() else score(model)
"""


@pytest.fixture
def regressor(tmp_path):
    """Flags that name a network with random weights, and the file with its score functions."""
    file, weights = tmp_path / "regressor.py", tmp_path / "weights.safetensors"
    file.write_text(NETWORK + f"\n\nWEIGHTS = {str(weights)!r}\n")
    torch.manual_seed(0)
    model = resolve_network(f"{file}:Regressor", input_size=(1, 8, 8)).build()
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights)
    flags = ["--model", f"{file}:Regressor", "--weights", str(weights), "--input-size", "1", "8", "8"]
    return [*flags, "--data", "none", "--calibration", "noise", "--quiet"], file


def test_a_policy_is_learned_by_a_score_function(run_cli, regressor, tmp_path):
    flags, file = regressor
    run, score = tmp_path / "run", ["--score", f"{file}:score"]
    outcome = run_cli("train", *flags, *score, "--episodes", "6", "--out", run, "--json")
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)
    rows = record["rows"]
    assert rows["dense"]["score"] == 0.0
    assert all(row["accuracy"] is None and row["agreement"] is None for row in rows.values())
    assert all(row["score"] < 0 for name, row in rows.items() if name != "dense")
    assert rows["learned"]["score"] == max(one["validation"] for one in record["candidates"].values())
    assert ("NOT" in record["verdict"]) == (rows["learned"]["score"] <= rows["uniform"]["score"])
    assert len(load_file(run / "compressed" / "model.safetensors")) > 0
    again = ["--compressed", run, "--model", flags[1], "--json"]
    outcome = run_cli("evaluate", *again, *score)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["score"] == pytest.approx(rows["learned"]["score"], rel=1e-4)
    outcome = run_cli("evaluate", *again)
    assert outcome.code == 2
    assert "name it with --score" in outcome.err


def test_a_score_that_fails_in_another_process_ends_the_run_in_one_line(run_cli, regressor, tmp_path):
    flags, file = regressor
    learning = ["--episodes", "9", "--n-envs", "2", "--out", tmp_path / "run"]
    outcome = run_cli("train", *flags, "--score", f"{file}:only_at_home", *learning)
    assert outcome.code == 2
    assert "nan" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_the_table_shows_the_score(run_cli, regressor, tmp_path):
    flags, file = regressor
    score = ["--score", f"{file}:score", "--static-ratio", "0.3"]
    outcome = run_cli("prune", *flags, *score, "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    words = outcome.out.split()
    assert "score" in words
    assert "accuracy" not in words
    assert ", by" in " ".join(words)  # long paths wrap


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("{file}:shy", "the score function returned nan"),
        ("{file}:broken", "the score function failed (AttributeError"),
        ("{file}:missing", "defines no callable 'missing'"),
        ("{file}", "names no function"),
        ("nowhere.py:score", "there is no file nowhere.py"),
        ("no_such_module_at_all:score", "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_score_that_is_none_is_refused_in_one_line(run_cli, regressor, tmp_path, flag, words):
    flags, file = regressor
    outcome = run_cli("train", *flags, "--score", flag.format(file=file), "--out", tmp_path / "run")
    assert outcome.code == 2
    assert words in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_what_needs_images_does_not_go_with_a_score(run_cli, regressor, tmp_path):
    given, file = regressor
    some = ["--first-images", "8"]
    outcome = run_cli("train", *given, *some, "--score", f"{file}:score", "--out", tmp_path / "run")
    assert outcome.code == 2
    assert "--score judges whole networks" in outcome.err
