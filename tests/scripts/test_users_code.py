"""Names and code of users' networks and functions: names are text, and code may do anything."""

import json
import logging
import os
import signal
import sys

import pytest
import torch
from safetensors.torch import save_file

from prunegym.agents.vector.ray_actor import EnvironmentActor, pack
from prunegym.pruning.errors import UserCodeError
from prunegym.pruning.metrics import scored
from prunegym.pruning.user_functions import named_function
from tests.agents.conftest import ToyPruning
from tests.scripts.conftest import NETWORK, QUICK, in_own_process

pytestmark = pytest.mark.runs

CODE = """
import os
import signal
import sys

HOME = os.getpid()


class Odd(BaseException):
    pass


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")

    __repr__ = __str__


def exits():
    sys.exit(0)


def exits_with_3():
    sys.exit(3)


def odd():
    raise Odd("one")


def mute():
    raise Mute


def disturbs():
    print("hello")
    os.chdir("/")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout.close()
    sys.stdout = sys.stderr = open(os.devnull, "w")


def disturbs_and_exits():
    disturbs()
    exits()


def score(model):
    return float(model.linear.weight.abs().sum())


def scoring(act, *, at_home=True):
    def scored(model):
        if at_home or os.getpid() != HOME:
            act()
        return score(model)

    return scored


def doing(act, *, at_home=True):
    class Acting(Net):
        def forward(self, x):
            if at_home or os.getpid() != HOME:
                act()
            return super().forward(x)

    return Acting


for act in (exits, exits_with_3, odd, mute, disturbs, disturbs_and_exits):
    globals()["forward_" + act.__name__] = doing(act)
    globals()["score_" + act.__name__] = scoring(act)
    globals()["away_forward_" + act.__name__] = doing(act, at_home=False)
    globals()["away_score_" + act.__name__] = scoring(act, at_home=False)
"""
RAISED = {
    "exits": "SystemExit: 0, at ",
    "exits_with_3": "SystemExit: 3, at ",
    "odd": "Odd: one, at ",
    "mute": "it has no message that can be shown",
}


@pytest.fixture
def file(tmp_path):
    (tmp_path / "net.py").write_text(NETWORK + CODE)
    return tmp_path / "net.py"


@pytest.fixture
def flags(material, tmp_path):
    return [*material.flags, "--out", tmp_path / "out"]


@pytest.mark.parametrize("what", [*RAISED])
class TestErrors:
    def test_of_a_forward_are_one_line(self, refused, flags, file, what):
        line = refused("prune", *flags, "--model", f"{file}:forward_{what}")
        assert RAISED[what] in line
        assert str(file) in line

    def test_of_a_score_function_are_one_line(self, refused, flags, file, what):
        line = refused("prune", *flags, "--score", f"{file}:score_{what}")
        assert f"the score function failed ({'Mute: ' if what == 'mute' else ''}{RAISED[what]}" in line
        assert f"{file}, line " in line

    def test_in_a_forked_process_are_one_line(self, run_cli, flags, file, what):
        for kind, failed in (("--model", "own code"), ("--score", "the score function")):
            name = f"{file}:away_{'forward' if kind == '--model' else 'score'}_{what}"
            learning = ["--episodes", "4", "--n-envs", "2", "--overwrite", kind, name]
            outcome = run_cli("train", *flags, *learning, *QUICK)
            assert outcome.code == 2
            assert outcome.err.startswith("prunegym: ")
            assert f"{failed} failed" in outcome.err
            assert f"{RAISED[what]}" in outcome.err
            assert outcome.err.count("\n") == 1
            assert f"{file}, line " in outcome.err


class Acting(ToyPruning):
    """Does what a user's function does at its first step."""

    def __init__(self, spec):
        super().__init__(5)
        self.measured = None
        self.act = named_function(spec)

    def reset(self, **settings):
        return self.observation_space.sample() * 0, {}

    def step(self, action):
        self.act()


@pytest.mark.parametrize("what", ["exits", "odd", "mute"])
def test_errors_in_a_process_of_a_cluster_are_named(file, what):
    actor = EnvironmentActor((), pack(Acting(f"{file}:{what}")), ())
    actor.reset(0, {})
    with pytest.raises(UserCodeError, match=rf"in {what}\); correct it there$") as caught:
        actor.step(torch.zeros(2).numpy())
    assert RAISED[what] in str(caught.value)


def test_that_ray_ends_a_process_stays_what_it_is(file):
    actor = EnvironmentActor((), pack(Acting(f"{file}:exits")), ())
    actor._env.step = eval("lambda action: sys.exit(1)", {"__name__": "ray._private.worker", "sys": sys})
    with pytest.raises(SystemExit):
        actor.step(torch.zeros(2).numpy())


@pytest.mark.parametrize("kind", ["--model", "--score"])
def test_an_error_is_told_whatever_became_of_the_streams(material, file, tmp_path, kind):
    value = f"{file}:{'forward' if kind == '--model' else 'score'}_disturbs_and_exits"
    out = tmp_path / "out"
    outcome = in_own_process("scripts/cli.py", "prune", *material.flags, kind, value, "--out", out)
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert RAISED["exits"] in outcome.err
    assert not out.exists()


@pytest.mark.parametrize("text", ["import sys\nsys.exit(0)", "class Odd(BaseException): pass\nraise Odd"])
@pytest.mark.parametrize("at_call", [False, True])
def test_a_file_or_factory_that_ends_the_process_is_refused(refused, flags, tmp_path, text, at_call):
    lines = text.replace("\n", "\n    ")
    (tmp_path / "bad.py").write_text(f"def make():\n    {lines}\n" if at_call else text)
    line = refused("prune", *flags, "--model", f"{tmp_path / 'bad.py'}:make")
    assert ("the factory raised " if at_call else "cannot be executed: ") in line


def test_an_error_of_this_project_keeps_its_stack_trace(run_cli, monkeypatch):
    monkeypatch.setattr("prunegym.scripts.describe.parse", json.loads)
    with pytest.raises(TypeError):
        run_cli("describe")


@pytest.mark.parametrize("kind", ["--model", "--score"])
def test_what_code_does_to_its_surroundings_loses_nothing(material, file, tmp_path, kind):
    value = f"{file}:{'forward' if kind == '--model' else 'score'}_disturbs"
    script = tmp_path / "run.py"
    script.write_text(
        "import os, signal, sys\n"
        "from prunegym.scripts.cli import main\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "before = signal.getsignal(signal.SIGTERM)\n"
        "code = main(sys.argv[1:])\n"
        "assert signal.getsignal(signal.SIGTERM) == before\n"
        "print('after')\n"
        "sys.exit(code)\n"
    )
    outcome = in_own_process(script, "prune", *material.flags, kind, value, "--out", "out")
    assert outcome.code == 0, outcome.err
    assert "Traceback" not in outcome.err
    assert "parameters" in outcome.out  # a heading of the table
    assert outcome.out.endswith("after\n")
    assert {entry.name for entry in (tmp_path / "out").iterdir()} == {
        *("compressed", "config.json", "metrics.json", "plan.json")
    }


def test_a_score_leaves_folder_streams_and_handlers_as_they_were(file):
    def disturb(model):
        os.chdir("/")
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stdout = None
        return 1.0

    before = signal.getsignal(signal.SIGINT), os.getcwd(), sys.stdout
    assert scored(disturb, named_function(f"{file}:Net")()) == 1.0
    assert (signal.getsignal(signal.SIGINT), os.getcwd(), sys.stdout) == before


def test_a_warning_shows_names_escaped(run_cli, monkeypatch, capfd):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    logger = logging.getLogger("prunegym.pruning.surgery")
    monkeypatch.setattr(
        "prunegym.scripts.describe.run", lambda argv: logger.warning("%s is frozen", "a\x1b[31m")
    )
    assert run_cli("describe").err == "a\\x1b[31m is frozen\n"


NAMES = ["[/red]", "\x1b[31m", "$x$", ":smile:"]
STRANGE = """
from collections import OrderedDict

from torch import nn

NAMES = {names!r}


class Net(nn.Sequential):
    def __init__(self):
        layers = [(name, nn.Conv2d(8 if i else 1, 8, 3, padding=1)) for i, name in enumerate(NAMES)]
        super().__init__(OrderedDict(layers))
        self.add_module("pool", nn.AdaptiveAvgPool2d(1))
        self.add_module("flat", nn.Flatten())
        self.add_module("linear", nn.Linear(8, 4))
"""


@pytest.fixture
def strange(material, tmp_path):
    """Flags that name a network whose folder, file and layers have strange names."""
    folder = tmp_path / "[/red]\x1b[31m"
    folder.mkdir(parents=True)
    file, weights = folder / "net\n[b].py", folder / "weights.safetensors"
    file.write_text(STRANGE.format(names=NAMES))
    save_file(named_function(f"{file}:Net")().state_dict(), weights)
    flags = ["--model", f"{file}:Net", "--weights", weights]
    return [*flags, *material.flags[4:], "--out", folder / "out"]


def escaped(outcome):
    for text in (outcome.out, outcome.err):
        assert "\x1b" not in text
    return outcome


@pytest.mark.usefixtures("no_pictures")
class TestStrangeNames:
    def test_are_shown_as_they_are_or_escaped(self, run_cli, strange):
        outcome = escaped(run_cli("describe", *strange[:-2]))
        assert outcome.code == 0, outcome.err
        for name in ("[/red]", r"\x1b[31m", "$x$", ":smile:"):
            assert f" {name} " in outcome.out

    def test_break_no_run(self, run_cli, strange):
        out = strange[-1]
        outcome = escaped(run_cli("train", *strange, "--episodes", "2", *QUICK))
        assert outcome.code == 0, outcome.err
        title = " ".join(outcome.out.split())  # it is wrapped where the path of the test is long
        assert r"[/red]\x1b[31m/net\n[b].py:Net at macs=0.5" in title
        assert r"\x1b[31m/out; watch" in outcome.err
        assert escaped(run_cli("report", out)).code == 0
        page = (out / "report.html").read_text(encoding="utf-8")
        assert "\x1b" not in page
        assert r"\x1b[31m" in page

    def test_stand_in_an_error_escaped(self, refused, strange):
        line = refused("prune", *strange[:2], *strange[4:], "--weights", "gone\x1b]0;title\x07")
        assert r"there is no weights file gone\x1b]0;title\x07" in line
