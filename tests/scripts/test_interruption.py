"""A run that is killed goes on as if nothing had happened; one that is interrupted says how to go on."""

import json
import shutil
import signal
import time

import pytest

from tests.scripts.conftest import start

EPISODES = 41  # five updates, each followed by a checkpoint, and the final policy
FROM_A_TERMINAL = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from scripts.cli import main
sys.exit(main(sys.argv[1:]))
"""


def wait_for(path, process):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def command(material):
    return ["train", *material.flags, "--budget", "macs=0.5", "--episodes", EPISODES, "--out"]


def test_a_killed_run_resumes_to_the_very_same_result(secateur, command, tmp_path):
    process = start("-c", FROM_A_TERMINAL, *command, tmp_path / "killed")
    wait_for(tmp_path / "killed" / "checkpoint" / "state.json", process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "metrics.json").exists()
    kept = json.loads((tmp_path / "killed" / "checkpoint" / "state.json").read_text())
    assert 0 < len(kept["history"]["ratios"]) < EPISODES - 1
    assert secateur(*command, tmp_path / "killed", "--resume").code == 0
    assert secateur(*command, tmp_path / "whole").code == 0
    for name in ("plan.json", "metrics.json", "policy/policy.json"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()
    for name in ("compressed/model.safetensors", "policy/policy.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_interrupted_run_says_in_one_line_how_to_go_on(secateur, command, tmp_path):
    process = start("-c", FROM_A_TERMINAL, *command, tmp_path / "out")
    wait_for(tmp_path / "out" / "config.json", process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines() == ["secateur: interrupted; the same command with --resume goes on"]
    assert secateur(*command, tmp_path / "out", "--resume").code == 0
    assert (tmp_path / "out" / "metrics.json").exists()


def test_a_cut_off_checkpoint_is_refused_and_the_run_left_as_it_is(secateur, command, finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (model,) = (run / "checkpoint").glob("model-*.zip")
    model.write_bytes(model.read_bytes()[:5000])
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    outcome = secateur(*command, run, "--resume")
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert str(model) in outcome.err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
