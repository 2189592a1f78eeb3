"""`train --cluster`: a real Ray cluster of two processes, in the face of all that may end one of them."""

import os
import re
import shutil
import signal
import subprocess
import time

import pytest

import prunegym.scripts.train
from tests.scripts.conftest import QUICK
from tests.scripts.killing import Running
from tests.scripts.test_interruption import ONE_LINE, check_equal, lines

pytestmark = pytest.mark.runs

EPISODES = 25


def processes():
    """Return (parent, command line) of each process by its number; those that have ended are left out."""
    columns = ["ps", "-wweo", "pid,ppid,stat,args"]
    listed = subprocess.run(columns, stdout=subprocess.PIPE, text=True, check=True)
    rows = (line.split(None, 3) for line in listed.stdout.splitlines()[1:])
    # a zombie has ended, and only waits for whoever inherited it to take note
    return {int(pid): (int(parent), command) for pid, parent, state, command in rows if state[0] != "Z"}


def descendants(ancestor):
    """Return the command line of each process that comes from this one, by its number."""
    everyone, found = processes(), {}
    for pid, (parent, command) in everyone.items():
        while parent in everyone and parent != ancestor:
            parent = everyone[parent][0]
        if parent == ancestor:
            found[pid] = command
    return found


def hosts(ancestor):
    return [pid for pid, command in descendants(ancestor).items() if "ray::EnvironmentActor" in command]


def wait_until_gone(pids):
    deadline = time.monotonic() + 60
    while left := {pid: command for pid, (_, command) in processes().items() if pid in pids}:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def folder_of(family):
    """Return the folder of the cluster among these processes."""
    (raylet,) = (command for command in family.values() if "raylet_socket_name" in command)
    return re.search(r"raylet_socket_name=(.+?)/session", raylet)[1]


@pytest.fixture(scope="module")
def flags(material):
    flags = ["--budget", "macs=0.5", "--episodes", EPISODES, "--n-envs", 2, "--baselines"]
    return ["train", *material.flags, *flags, *QUICK]


@pytest.fixture
def stuck(flags, tmp_path):
    """Start a run that waits, after some episodes, for one of its two hosts to go on; return both."""

    def start(out, episodes):
        running = Running(tmp_path / "1", *flags, "--cluster", "local", "--out", out)
        running.when(lambda: len(hosts(running.pid)) == 2)
        first, second = hosts(running.pid)
        running.when(lambda: len(lines(out)) >= episodes)
        os.kill(first, signal.SIGSTOP)
        return running, first, second

    return start


def test_a_run_loses_a_host_then_its_own_life_and_ends_as_one_in_forks(
    run_cli, flags, stuck, tmp_path, monkeypatch
):
    monkeypatch.setattr(prunegym.scripts.train, "write_pictures", lambda out: {})  # they take a second
    assert run_cli(*flags, "--out", tmp_path / "whole").code == 0
    out = tmp_path / "run"
    running, first, second = stuck(out, episodes=3)
    os.kill(first, signal.SIGKILL)
    running.when(lambda: len(lines(out)) >= 11)
    os.kill(second, signal.SIGSTOP)
    family = descendants(running.pid)
    code, said, warned = running.end(signal.SIGTERM)
    assert (code, said) == (143, "")
    warning, rest = warned.split("\n", 1)
    assert re.fullmatch(r"the process of environment [01] died \(.+\); it is replaced", warning)
    assert rest == ONE_LINE
    wait_until_gone(family)
    assert not os.path.exists(folder_of(family))
    assert run_cli(*flags, "--out", out, "--resume").code == 0  # in forks: where it ran does not matter
    check_equal(out, tmp_path / "whole")


def test_ctrl_c_ends_the_cluster_of_a_run(stuck, tmp_path):
    running, *_ = stuck(tmp_path / "run", episodes=2)
    family = descendants(running.pid)
    assert running.end(signal.SIGINT, group=True) == (130, "", ONE_LINE)
    wait_until_gone(family)
    assert not os.path.exists(folder_of(family))


def test_no_host_outlives_a_run_that_is_killed(stuck, tmp_path):
    running, *both = stuck(tmp_path / "run", episodes=2)
    family = descendants(running.pid)
    assert running.end(signal.SIGKILL) == (-signal.SIGKILL, "", "")
    wait_until_gone(both)
    shutil.rmtree(folder_of(family), ignore_errors=True)  # Ray's agents write there for a minute yet


@pytest.mark.parametrize("address", ["nowhere.invalid:6379", "127.0.0.1:9", "rubbish"])
def test_an_address_without_a_cluster_is_refused_at_once(refused, flags, tmp_path, address):
    line = refused(*flags, "--cluster", address, "--out", tmp_path / "run")
    assert f"cannot use the Ray cluster {address} (" in line
    assert "give HOST:PORT of one that this machine is part of, or local" in line
