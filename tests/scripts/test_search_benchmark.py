import json
import os
import signal
import sys
import time

import numpy as np
import pytest

from prunegym.scripts.benchmarks import figures, search, transfer
from prunegym.scripts.benchmarks.results import Record, run_side_by_side
from tests.scripts import fork_server

pytestmark = pytest.mark.runs


def side_by_side(jobs, run, out=None, results=None):
    return run_side_by_side(Record(out, {}, {} if results is None else results), jobs, run, progress=False)


def say(*names):
    return {"names": list(names), "process": os.getpid()}


def fail(*names):
    raise AssertionError(f"{names} should not have been run")


JOBS = [("cell", "ppo", "0"), ("cell", "ppo", "1"), ("other", "random", "0")]


def test_jobs_run_in_other_processes_and_are_filed_by_their_names(tmp_path):
    record = side_by_side(JOBS, say, tmp_path / "r.json")
    for cell, method, seed in JOBS:
        found = record[cell][method][seed]
        assert found["names"] == [cell, method, seed]
        assert found["process"] != os.getpid()
    assert json.loads((tmp_path / "r.json").read_text()) == {"settings": {}, "results": record}


def test_there_are_as_many_processes_as_cores_that_may_be_used(monkeypatch):
    def say_slowly(*names):
        time.sleep(0.05)  # long enough for a second process, if there were one, to take the next job
        return say(*names)

    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1}, raising=False)
    record = side_by_side(JOBS, say_slowly)
    assert len({record[cell][method][seed]["process"] for cell, method, seed in JOBS}) == 1


def test_what_a_record_holds_is_not_run_again():
    record = {"cell": {"ppo": {"0": 1, "1": 2}}, "other": {"random": {"0": 3}}}
    assert side_by_side(JOBS, fail, results=record) == record


def test_a_job_that_fails_is_not_passed_over():
    with pytest.raises(AssertionError, match="should not have been run"):
        side_by_side(JOBS, fail)


def test_a_job_that_fails_ends_the_others_at_once():
    def fail_or_sleep(*names):
        if names == JOBS[0]:
            fail(*names)
        time.sleep(600)

    with pytest.raises(AssertionError, match="should not have been run"):
        side_by_side(JOBS, fail_or_sleep)


def work_until_interrupted(out, held):
    """Do one job, and others that never end; `held` is open for as long as a process of this lives."""

    def sleep_after_the_first(*names):
        return say(*names) if names == JOBS[0] else time.sleep(600)

    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        side_by_side(JOBS, sleep_after_the_first, out)
    except KeyboardInterrupt:
        sys.exit(130)


@pytest.mark.parametrize("ask", [os.kill, os.killpg])  # as a supervisor does, and as Ctrl-C in a terminal
def test_an_interruption_ends_all_at_once_and_keeps_what_was_found(tmp_path, ask):
    alive, held = fork_server.CONTEXT.Pipe(duplex=False)
    process = fork_server.start(work_until_interrupted, tmp_path / "r.json", held)
    held.close()
    while not (tmp_path / "r.json").exists():
        assert process.is_alive()
        time.sleep(0.01)
    ask(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    assert alive.poll(60)  # no worker is left
    assert list(json.loads((tmp_path / "r.json").read_text())["results"]) == ["cell"]


class TestInterval:
    def test_equal_methods_differ_by_nothing(self):
        right = np.random.default_rng(1).integers(2, size=(5, 500)).astype(float)
        assert figures.interval(right, right) == (0.0, 0.0)

    def test_covers_the_true_difference_about_as_often_as_it_says(self):
        rng, covered = np.random.default_rng(2), 0
        for _ in range(40):
            one = (rng.random((4, 300)) < 0.8).astype(float)
            other = (rng.random((4, 300)) < 0.75).astype(float)
            low, high = figures.interval(one, other)
            covered += low <= 0.05 <= high
        assert covered >= 34

    def test_is_narrow_where_the_pairs_agree(self):
        right = (np.random.default_rng(3).random((5, 500)) < 0.5).astype(float)
        worse = right.copy()
        worse[:, :50] = 0.0  # differs on these images alone
        low, high = figures.interval(right, worse)
        assert 0.0 < low < (right - worse).mean() < high < 0.1


def run_of(accuracy, right):
    row = {"accuracy": accuracy, "right": right, "reward": 0.4, "macs": 0.5}
    return {"rows": {"best of 100": row, "answer": row}, "seconds": 3.0}


def test_the_table_says_how_far_the_default_agent_is_ahead(capsys):
    cell = {"dyna-ppo": {"0": run_of(1.0, "1111")}, "random": {"0": run_of(0.5, "1010")}}
    search.show({"ResNet-20, whole, half": cell})
    shown = capsys.readouterr().out
    assert "100.0 ± 0.0" in shown
    assert "+50.0 [+0.0, +100.0]" in shown
    assert "0.400" in shown


def test_the_transfer_table_has_a_column_for_each_count_of_evaluations(capsys):
    transfer.show(
        {"whole": {"uniform": {"0": {"0": {"accuracy": 0.8}}}, "scratch": {"50": {"0": {"accuracy": 0.85}}}}}
    )
    shown = capsys.readouterr().out
    assert "80.0 ± 0.0" in shown
    assert "85.0 ± 0.0" in shown
