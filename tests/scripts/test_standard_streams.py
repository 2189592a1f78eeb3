"""Standard streams that are full, closed, or have no reader; and those that a user's code closes."""

import io
import os
import subprocess
import sys

import pytest

from prunegym.scripts.standard_streams import standard_output, sturdy_streams
from tests.scripts.conftest import start


@pytest.fixture
def pipe(monkeypatch):
    """Make standard output a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        yield


def test_what_nobody_reads_is_dropped(pipe):
    with sturdy_streams():
        print("x" * 10**6, flush=True)


def test_a_full_device_is_an_error_that_names_the_stream(monkeypatch):
    with open("/dev/full", "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        with sturdy_streams():
            print("x")
            with pytest.raises(OSError, match="No space left on device: 'standard output'"):
                sys.stdout.flush()


def test_what_standard_error_cannot_take_is_dropped(monkeypatch):
    with open("/dev/full", "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        with sturdy_streams():
            print("x", file=sys.stderr, flush=True)


def test_a_stream_that_was_closed_from_the_start_takes_anything(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with sturdy_streams():
        print("x", flush=True, file=standard_output())
    assert sys.stdout is None


def test_results_come_whatever_code_does_to_standard_output(capfd):
    with sturdy_streams():
        print("one")
        sys.stdout.close()
        print("two")
        sys.stdout = io.StringIO()
        print("lost")
        print("three", file=standard_output())
    print("four")
    assert capfd.readouterr().out == "one\ntwo\nthree\nfour\n"


def test_what_a_stream_cannot_encode_is_escaped(tmp_path, monkeypatch):
    with (tmp_path / "out").open("w", encoding="ascii") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        with sturdy_streams():
            print("größe")
    assert (tmp_path / "out").read_text() == "gr\\xf6\\xdfe\n"


def test_streams_that_are_no_files_stay(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    ours = sys.stdout
    with sturdy_streams():
        assert sys.stdout is ours


@pytest.mark.runs
class TestCommands:
    @pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["describe"]])
    def test_that_cannot_write_fail_in_one_line(self, argv):
        with open("/dev/full", "w") as full:
            process = start("scripts/cli.py", *argv, stdout=full)
            err = process.communicate(timeout=300)[1]
        assert process.returncode == 2
        line = "cannot write standard output: no space left on device; free some space, or write elsewhere"
        assert err == f"prunegym: {line}\n"

    @pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["prune", "--json"]])
    def test_whose_reader_went_away_are_done_once_all_is_written(self, argv, material, tmp_path):
        more = [*material.flags, "--out", tmp_path / "out"] if "prune" in argv else []
        process = start("scripts/cli.py", *argv, *more)
        process.stdout.close()
        process.stdout = None
        err = process.communicate(timeout=300)[1]
        assert process.returncode == 0
        assert err == ""
        if more:
            assert (tmp_path / "out" / "metrics.json").is_file()

    def test_whose_errors_nobody_reads_have_their_exit_code(self):
        with open("/dev/full", "w") as full:
            process = start("scripts/cli.py", "trian", stdout=subprocess.DEVNULL, stderr=full)
            process.communicate(timeout=300)
        assert process.returncode == 2
