"""The campaign against the commands: what it runs, what it sees, and what comes of a twentieth of it."""

import errno
import json
import os
import signal
import sys
import time
from functools import partial
from random import Random

import pytest

from prunegym.pruning.files.cache import write_cached
from prunegym.scripts.benchmarks.faults import children, records, steps
from prunegym.scripts.benchmarks.faults.campaign import KINDS, case_names, run_case
from prunegym.scripts.benchmarks.faults.children import Ended, Place, Running, run
from prunegym.scripts.benchmarks.faults.commands import COMMANDS
from prunegym.scripts.benchmarks.faults.comparing import differences, written
from prunegym.scripts.benchmarks.faults.findings import Findings, failures
from prunegym.scripts.benchmarks.faults.inputs import CASES, SOURCES, all_flags, attack
from prunegym.scripts.benchmarks.faults.kills import compared
from prunegym.scripts.benchmarks.faults.page import write_page
from prunegym.scripts.benchmarks.faults.quick_commands import QUICK
from prunegym.scripts.benchmarks.faults.verdicts import FAILED, Finding, fault
from prunegym.scripts.cli import VERBS
from prunegym.scripts.options.benchmark import BenchmarkConfig
from prunegym.scripts.options.parser import UsageError
from tests.scripts.conftest import in_own_process, start

pytestmark = pytest.mark.runs
QUIET = ["--help"]  # takes no time


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path / "case").prepared()


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, None),
        ({"out": "", "err": "written to out\n"}, None),
        ({"code": 2, "err": "prunegym: no\n"}, None),
        ({"hung": True}, "hang"),
        ({"code": 1, "err": "Traceback (most recent call last):\n"}, "traceback"),
        ({"err": "Exception ignored in: x\n"}, "traceback"),
        ({"code": 1, "err": "prunegym: no\n"}, "wrong code"),
        ({"code": -6}, "wrong code"),
        ({"out": ""}, "wrong code"),  # as where a network ends the process in its forward
        ({"code": 2}, "no line"),
        ({"code": 2, "err": "a warning\nprunegym: no\n"}, None),
        ({"code": 2, "err": "prunegym: no\nprunegym: no\n"}, "several lines"),
        ({"code": 2, "err": f"prunegym: {'x' * 700}\n"}, "long line"),
        ({"code": 2, "err": "prunegym: no \x1b[31m\n"}, "control characters"),
        ({"lingering": True}, "lingering process"),
    ],
)
def test_what_no_command_may_do(place, change, verdict):
    ended = {"code": 0, "out": "a table", "err": "", "seconds": 1.0, "hung": False, "lingering": False}
    assert fault(Ended(**{**ended, **change}), place) == verdict


def test_code_that_was_run_and_files_that_were_touched_are_seen(place):
    ended = Ended(code=0, out="a table", err="", seconds=1.0, hung=False, lingering=False)
    (place.outside / "new").touch()
    assert fault(ended, place) == "touched outside"
    place.ran.mkdir()
    assert fault(ended, place) == "code run"


class TestACommand:
    def test_has_a_process_home_and_cache_of_its_own(self, place):
        def tell():
            print(os.getcwd(), os.environ["HOME"], os.environ["PRUNEGYM_CACHE"])
            print("a word", file=sys.stderr)

        ended = run(place, QUIET, tell)
        first, *rest = ended.out.splitlines()
        assert first.split() == [str(place.work), str(place.root / "home"), str(place.cache)]
        assert rest[0] == "usage: prunegym VERB [--help] ..."
        assert (ended.code, ended.err, ended.hung, ended.lingering) == (0, "a word\n", False, False)

    def test_that_hangs_is_killed(self, place):
        ended = Running(place, QUIET, partial(time.sleep, 60)).end(0.5)
        assert (ended.code, ended.hung) == (-signal.SIGKILL, True)

    def test_whose_process_outlives_it_is_seen(self, place, monkeypatch):
        monkeypatch.setattr(children, "GRACE", 0.2)

        def leave():
            if os.fork() == 0:
                time.sleep(60)

        assert run(place, QUIET, leave).lingering

    @pytest.mark.parametrize(
        ("error", "code"), [(SystemExit(0), 0), (SystemExit("x"), 1), (ValueError("x"), 1)]
    )
    def test_ends_with_the_code_that_python_gives(self, place, error, code):
        def fail():
            raise error

        ended = run(place, QUIET, fail)
        assert ended.code == code
        assert ("Traceback" in ended.err) == isinstance(error, ValueError)


class TestSteps:
    @staticmethod
    def work(place, prepare):
        """A command that takes five steps below its folder, and some elsewhere."""

        def act():
            prepare()
            (place.work / "a").mkdir()
            (place.root / "elsewhere").write_text("x")
            with open("a/b", "w") as file:
                os.fsync(file)
            os.replace("a/b", "a/c")
            (place.work / "a" / "c").read_text()
            os.unlink("a/c")

        return run(place, QUIET, act)

    def test_are_counted(self, place):
        assert self.work(place, partial(steps.noted, [place.work], place.root / "steps")).code == 0
        found = json.loads((place.root / "steps").read_text())
        assert found == ["mkdir a", "open a/b", "fsync a/b", "rename a/c", "remove a/c"]

    @pytest.mark.parametrize(("number", "left"), [(0, []), (1, ["a"]), (3, ["a", "a/b"]), (4, ["a", "a/c"])])
    def test_a_command_is_killed_just_before_one(self, place, number, left):
        ended = self.work(place, partial(steps.killed_at, [place.work], number, None))
        assert ended.code == -signal.SIGKILL
        assert sorted(path.relative_to(place.work).as_posix() for path in place.work.rglob("*")) == left

    def test_one_fails(self, place):
        fail = partial(steps.failing_at, [place.work], 3, errno.ENOSPC, lasting=False)
        ended = self.work(place, fail)
        assert ended.code == 1
        assert "OSError: [Errno 28] No space left on device: 'a/c'" in ended.err


def test_clocks_make_no_difference(place, tmp_path):
    other = Place(tmp_path / "other").prepared()
    for one, clock in ((place, 1), (other, 2)):
        one.out.mkdir()
        (one.out / "metrics.json").write_text(json.dumps({"rows": [{"latency_ms": clock, "macs": 3}]}))
        (one.out / "config.json").write_text(json.dumps({"seed": 0, "command": str(clock)}))
        write_cached(one.cache / "latency-a", json.dumps({"dense": clock / 3}).encode())
    assert differences(written(place), written(other)) == []
    (other.out / "metrics.json").write_text(json.dumps({"rows": [{"latency_ms": 1, "macs": 4}]}))
    (other.out / ".tmp").mkdir()
    names = [f"some/where/work/out/{name}" for name in (".tmp/", "metrics.json")]
    assert differences(written(place), written(other)) == names


def test_every_verb_is_attacked():
    assert set(QUICK) == set(VERBS)
    assert {flag.verb for flag in all_flags()} == set(VERBS)
    assert {command.verb for command in COMMANDS.values()} == set(VERBS) - {"describe", "report", "benchmark"}


def test_every_flag_gets_a_wrong_word(place, monkeypatch):
    given = set()

    def refuse(place, argv):
        verb, words = argv[0], argv[1:]
        given.add((verb, words[0].partition("=")[0]))
        return Ended(code=2, out="", err="prunegym: no\n", seconds=1.0, hung=False, lingering=False)

    monkeypatch.setattr("prunegym.scripts.benchmarks.faults.inputs.quick", lambda verb, world: [verb])
    monkeypatch.setattr("prunegym.scripts.benchmarks.faults.inputs.run", refuse)
    for number in range(CASES):
        if SOURCES[number % len(SOURCES)] is SOURCES[0]:  # which draws a flag
            assert attack(number, Random(number), None, place).verdict == "refused"
    assert given == {(flag.verb, flag.name) for flag in all_flags()}


def test_there_are_as_many_cases_as_were_promised():
    least = {"kills": 200, "machine": 100, "inputs": 500, "records": 300}
    assert {kind for kind, count in least.items() if KINDS[kind].cases >= count} == set(least) == set(KINDS)
    assert len(set(case_names())) == len(case_names()) == sum(kind.cases for kind in KINDS.values())
    assert {name.partition("/")[0] for name in case_names(0.001)} == set(KINDS)


def test_a_case_draws_the_same_each_time(tmp_path):
    record = json.dumps({"a": [1, 2, {"b": None}], "c": "x" * 50})
    told, texts = [], []
    for _ in range(2):
        (tmp_path / "a.json").write_text(record)
        told.append(records._changed(tmp_path / "a.json", 1, Random("0 records/7"), Place(tmp_path)))
        texts.append((tmp_path / "a.json").read_bytes())
    assert told[0] == told[1]
    assert texts[0] == texts[1] != record.encode()


def test_what_goes_wrong_in_the_campaign_is_a_finding(tmp_path, monkeypatch):
    def break_down(number, rng, world, place):
        raise ValueError("odd")

    monkeypatch.setitem(KINDS, "kills", KINDS["kills"]._replace(attack=break_down))
    world = type("World", (), {"folder": tmp_path / "world"})
    assert run_case(world, 0, "kills/3")["verdict"] == "broken case"


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (lambda place: None, "equal"),
        (lambda place: (place.cache / "table.json").unlink(), "equal"),
        (lambda place: (place.out / "plan.json").unlink(), "unequal"),
        (lambda place: (place.out / "plan.json").write_text("{}"), "unequal"),
        (lambda place: (place.out / ".plan.json.x").touch(), "leftover"),
    ],
)
def test_a_disturbed_run_is_compared_with_one_that_was_not(place, change, verdict):
    place.out.mkdir()
    (place.out / "plan.json").write_text('{"version": 2}')
    (place.cache / "table.json").write_text("{}")
    reference = type("Reference", (), {"files": written(place)})
    world = type("World", (), {"reference": staticmethod(lambda name: reference)})
    change(place)
    assert compared("prune", "killed", world, place).verdict == verdict


class TestFindings:
    EQUAL, LEFT = (Finding(verdict, "killed").to_dict() for verdict in ("equal", "leftover"))

    def test_are_kept_and_go_on_after_a_line_cut_short(self, tmp_path):
        config = BenchmarkConfig("faults", out=tmp_path / "faults.jsonl", seed=3)
        Findings(config).add("kills/0", self.EQUAL)
        Findings(config).add("kills/1", self.LEFT)
        with config.out.open("ab") as file:
            file.write(b'{"case": "kills/2", "verd')
        again = Findings(config)
        assert again.cases == {"kills/0": self.EQUAL, "kills/1": self.LEFT}
        again.add("kills/2", self.EQUAL)
        assert list(Findings(config).cases) == ["kills/0", "kills/1", "kills/2"]

    @pytest.mark.parametrize("text", ["", "x\n", "[1]\n", '{"benchmark": "faults", "seed": 4}\n', "{}\n{}\n"])
    def test_of_something_else_are_left_alone(self, tmp_path, text):
        config = BenchmarkConfig("faults", out=tmp_path / "faults.jsonl", seed=3)
        config.out.write_text(text)
        with pytest.raises(UsageError, match="give another --out"):
            Findings(config)
        assert config.out.read_text() == text

    def test_the_page_counts_them_and_lists_the_worst_first(self, tmp_path):
        cases = {"kills/0": self.EQUAL, "kills/1": self.LEFT, "inputs/0": Finding("hang", "x").to_dict()}
        assert list(failures({"cases": cases})) == ["inputs/0", "kills/1"]
        write_page(tmp_path / "page.md", {"seed": 0, "cases": cases})
        page = (tmp_path / "page.md").read_text()
        assert "| kind | cases | equal | hang | leftover |" in page
        assert "| kills | 2 | 1 | 0 | 1 |" in page
        assert "- kills/1, leftover: `killed`" in page
        assert all(f"- *{verdict}*: " in page for verdict in ("equal", "hang", "leftover"))


@pytest.fixture(scope="module")
def twentieth(tmp_path_factory):
    """The cases of a twentieth of the campaign, and the file that keeps them."""
    out = tmp_path_factory.mktemp("faults") / "faults.jsonl"
    command = ["scripts/benchmark.py", "faults", "--share", "0.05", "--out", out, "--json", "--quiet"]
    out_text, err = start(*command).communicate(timeout=1200)  # minutes on a busy machine
    assert err == ""
    before = out.read_text()
    assert in_own_process(*command) == (0, out_text, "")  # all that it asks for is in the file
    assert out.read_text() == before
    return json.loads(out_text)["cases"]


def test_a_twentieth_of_the_campaign_runs(twentieth):
    assert set(twentieth) == set(case_names(0.05))
    assert {found["verdict"] for found in twentieth.values()} - set(FAILED)
    assert [found for found in twentieth.values() if found["verdict"] == "broken case"] == []


def test_nothing_fails_in_a_twentieth_of_the_campaign(twentieth):
    assert failures({"cases": twentieth}) == {}
