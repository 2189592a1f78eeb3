import json
import os
import signal
import sys
import time
from itertools import count

import pytest
import torch
from torch import nn

from prunegym.pruning.errors import PruningError
from prunegym.scripts import cli
from prunegym.scripts.benchmarks import coverage, coverage_checks, limited
from prunegym.scripts.benchmarks.coverage_networks import TIMM
from prunegym.scripts.benchmarks.coverage_subject import load_subject
from prunegym.scripts.benchmarks.coverage_table import is_fully_checked, is_right, runs, summary, write_table
from prunegym.scripts.benchmarks.limited import Limits, run_limited

pytestmark = pytest.mark.runs

PASSED = {
    "side": 64, "groups": 3, "frozen": {}, "runs": True, "macs": 0.4, "error": 1e-12, "refitted": True,
    "reloaded": True,
}  # fmt: skip
ROOMY = Limits(seconds=60, gigabytes=16)


def refuses():
    raise PruningError("no channel group may be pruned")


def breaks():
    raise ValueError("two\nlines")


def dies():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("job", "result"),
    [
        (lambda: {"macs": 0.5}, {"macs": 0.5}),
        (refuses, {"failed": "no channel group may be pruned"}),
        (breaks, {"failed": "ValueError: two lines"}),
        (dies, {"failed": "its process ended with code -9"}),
    ],
)
def test_a_job_yields_its_result_or_why_there_is_none(job, result):
    assert dict(run_limited({"it": job}, ROOMY, side_by_side=1)) == {"it": result}


def test_a_job_that_is_not_done_in_time_does_not_hold_up_the_others(monkeypatch):
    monkeypatch.setattr(limited, "SECONDS_PER_PROCESSOR_SECOND", 5)
    jobs = {"stuck": lambda: time.sleep(60), "fast": lambda: {"done": True}}
    found = dict(run_limited(jobs, Limits(seconds=1, gigabytes=16), side_by_side=2))
    assert found == {"fast": {"done": True}, "stuck": {"failed": "not done after 5 s"}}


def test_processor_time_is_what_is_limited_not_waiting_for_it(monkeypatch):
    monkeypatch.setattr(limited, "SECONDS_PER_PROCESSOR_SECOND", 60)
    found = dict(run_limited({"busy": lambda: sum(count())}, Limits(seconds=1, gigabytes=16), side_by_side=1))
    assert found == {"busy": {"failed": "not done after 1 s of processor time"}}


@pytest.mark.parametrize(
    "ask", [lambda: bytearray(17 * 2**30), lambda: torch.empty(17 * 2**30, dtype=torch.int8)]
)
def test_a_job_that_asks_for_too_much_memory_fails_alone(ask):
    found = dict(run_limited({"big": ask}, ROOMY, side_by_side=1))
    assert found == {"big": {"failed": "needs more than 16 GB"}}


@pytest.mark.parametrize(
    ("change", "passes"),
    [
        ({}, (True, True, True)),
        ({"reloaded": False}, (True, True, False)),
        ({"refitted": False}, (True, True, False)),
        ({"error": 0.1}, (True, False, False)),
        ({"error": None}, (True, False, False)),
        ({"macs": 1.0}, (False, False, False)),
        ({"runs": False}, (False, False, False)),
        ({"failed": "why"}, (False, False, False)),
    ],
)
def test_what_counts_as_passed(change, passes):
    found = {**PASSED, **change}
    assert (runs(found), is_right(found), is_fully_checked(found)) == passes


def test_the_page_says_how_many_passed_and_why_the_others_did_not(tmp_path):
    theirs = {key: PASSED[key] for key in ("runs", "macs", "error")}
    record = {
        "seed": 0,
        "versions": {"torch": "2", "torch-pruning": None},
        "kinds": {"torchvision/a": "cnn", "torchvision/b": "cnn", "timm/c": "hybrid"},
        "prunegym": {"torchvision/a": PASSED, "torchvision/b": {"failed": "because"}, "timm/c": PASSED},
        "torch-pruning": {"torchvision/a": {**theirs, "error": 0.2}},
    }
    assert list(summary(record)) == [
        "torchvision, CNNs: 1 of 2 fully checked (run after pruning: 1; equal to silencing: 1); "
        "Torch-Pruning: 1 run, 0 equal to silencing",
        "timm, CNNs with attention or recurrence: 1 of 1 fully checked "
        "(run after pruning: 1; equal to silencing: 1)",
    ]
    write_table(tmp_path / "page.md", record)
    page = (tmp_path / "page.md").read_text()
    assert "| a | 64 | 3 | 40% | yes | yes | yes | yes | 40% | no |" in page
    assert "- b: because" in page
    assert len({line.count("|") for line in page.splitlines() if line.startswith("|")}) == 1


def test_a_network_is_checked_by_both_and_not_again(tmp_path, capsys, monkeypatch):
    out, page = tmp_path / "coverage.json", tmp_path / "page.md"
    command = ["benchmark", "coverage", "--networks", "cifar_resnet20", "--out", str(out)]
    command += ["--table", str(page)]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    record = json.loads(out.read_text())["results"]
    assert "built in: 1 of 1 fully checked" in said.replace("\n", " ")
    assert record["prunegym"]["cifar_resnet20"]["groups"] == 12
    assert "failed" in record["torch-pruning"]["cifar_resnet20"]  # on its padded shortcuts
    assert "| cifar_resnet20 | 32 | 12 |" in page.read_text()
    monkeypatch.setattr(coverage, "CHECKS", dict.fromkeys(coverage.CHECKS))  # calling one would fail
    assert cli.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == record


def test_without_torch_pruning_the_comparison_is_left_out(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    assert not coverage.can_compare()
    record = {"seed": 0, "versions": {}, "kinds": {}, "prunegym": {}, "torch-pruning": {}}
    coverage.show(record)
    assert 'pip install "prunegym[compare]"' in " ".join(capsys.readouterr().out.split())


class Plain(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 6, 3),
            nn.Flatten(),
            nn.Linear(96, 4),
        )


def test_what_torch_pruning_cuts_is_read_off_its_groups():
    torch.manual_seed(0)
    model = Plain()
    tp = coverage_checks.torch_pruning()
    pruner = tp.pruner.MagnitudePruner(
        model,
        torch.randn(2, 3, 8, 8),
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[model[5]],
    )
    weakest = [model[0].weight, model[3].weight]
    masks = coverage_checks.prune_(pruner, model)
    assert [tuple(one.shape[:2]) for one in weakest] == [(8, 3), (6, 8)]  # the old ones
    assert (int(masks["3"].sum()), int(masks["5"].sum())) == (4, 48)
    assert masks["5"].view(6, 16).sum(1).tolist().count(16) == 3  # whole channels of 4 x 4 places
    assert (model[3].in_channels, model[5].in_features) == (4, 48)


@torch.no_grad()
def test_a_subject_has_no_muted_block_and_no_trivial_statistic():
    subject = load_subject("timm/test_resnet", seed=0)
    norms = [one for one in subject.model.modules() if isinstance(one, nn.BatchNorm2d)]
    assert min(float(one.weight.min()) for one in norms) >= 0.5  # the last of each block started at zero
    assert all(float(one.running_mean.abs().max()) > 0 for one in norms)
    assert subject.images.shape[1:] == subject.spec.input_shape == (3, 64, 64)
    again = load_subject("timm/test_resnet", seed=0)
    pairs = zip(subject.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_the_list_names_each_network_once():
    names = " ".join(TIMM.values()).split()
    assert len(names) == len(set(names)) > 60


def test_every_name_on_the_list_is_known_to_timm():
    import timm

    assert all(timm.is_model(name) for name in " ".join(TIMM.values()).split())
