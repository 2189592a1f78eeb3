"""A run that is killed, whenever and however, goes on as if nothing had happened, and loses no evaluation."""

import json
import shutil
import signal
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import prunegym.agents.per_input.ppo
import prunegym.scripts.train
import prunegym.scripts.train_per_input
from prunegym.envs import InputPruningVectorEnv
from prunegym.envs.results import PlanScorer
from prunegym.pruning.network import PrunableNetwork
from prunegym.scripts.cli import main, run_verb
from tests.scripts.conftest import QUICK, start
from tests.scripts.killing import Running

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("no_pictures")]

ROUND = 5  # updates of a run that learns for each input, in each of its two rounds
EPISODES = 25  # for an agent three updates, a checkpoint after the first two, and the final policy
ROUNDS = ("evaluated_episodes=8", "warmup_episodes=8")
LEARNERS = {
    "default": [*(word for number in ROUNDS for word in ("--hyper", number)), *QUICK],
    "ppo": ["--algo", "ppo", "--hyper", "n_epochs=2"],
    "two processes": ["--algo", "ppo", "--hyper", "n_epochs=2", "--n-envs", "2"],
    "sac": ["--algo", "sac", "--hyper", "warmup_episodes=4", "--first-images", "24"],
    "cma-es": ["--algo", "cma-es"],
}
ONE_LINE = "prunegym: interrupted; the same command with --resume goes on\n"


def lines(out, by=""):
    log = out / "episodes.jsonl"
    return [line for line in log.read_text().splitlines() if by in line] if log.exists() else []


def without_latency(data):
    if isinstance(data, dict):
        return {key: without_latency(value) for key, value in data.items() if key != "latency_ms"}
    return data


def curves(out):
    """Return steps and values of each curve of each TensorBoard run, clocks left out."""
    found = {}
    for run in {path.parent for path in (out / "tensorboard").rglob("*tfevents*")}:
        events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            if not tag.startswith("time/"):
                points = [(event.step, event.value) for event in events.Scalars(tag)]
                found[str(run.relative_to(out)), tag] = points
    return found


def plan_of(line):
    return json.loads(line)["plan"]


@pytest.fixture(scope="module")
def flags(material):
    return ["train", *material.flags, "--budget", "macs=0.5", "--episodes", EPISODES]


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
    """The folder of an uninterrupted run."""
    made = {}

    def run(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("whole") / "run"
            assert main([str(flag) for flag in [*flags, *LEARNERS[name], "--out", made[name]]]) == 0
        return made[name]

    return run


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Return the plans that were evaluated so far in this test, in this process and its forks."""
    record, score, apply = tmp_path / "measured.jsonl", PlanScorer.score, PrunableNetwork.apply

    def apply_and_record(network, plan):
        with record.open("a") as file:
            file.write(json.dumps(plan.to_dict()) + "\n")
        return apply(network, plan)

    def score_watched(scorer, widths, **how):
        with pytest.MonkeyPatch.context() as patch:  # other work applies plans, too
            patch.setattr(PrunableNetwork, "apply", apply_and_record)
            return score(scorer, widths, **how)

    monkeypatch.setattr(PlanScorer, "score", score_watched)
    record.touch()
    return lambda: [json.loads(line) for line in record.read_text().splitlines()]


def check_equal(out, whole):
    """Compare all that a run writes and that is no clock."""
    for name in ("plan.json", "metrics.json"):
        one, other = (json.loads((folder / name).read_text()) for folder in (out, whole))
        assert without_latency(one) == without_latency(other)
    assert lines(out) == lines(whole)
    for name in ("compressed/model.safetensors", "policy/policy.safetensors", "policy/policy.json"):
        if (whole / name).exists():
            assert (out / name).read_bytes() == (whole / name).read_bytes()
    if (whole / "tensorboard").exists():
        assert curves(out) == curves(whole)


@pytest.mark.parametrize(
    ("name", "author", "count", "number"),
    [
        ("default", "dyna-ppo", 3, signal.SIGTERM),
        ("default", "dyna-ppo", 19, signal.SIGKILL),
        ("ppo", "ppo", 3, signal.SIGINT),  # before the first checkpoint
        ("ppo", "ppo", 19, signal.SIGKILL),  # after the second
        ("ppo", "random", 5, signal.SIGTERM),  # while the baseline runs
        ("sac", "sac", 6, signal.SIGTERM),
        ("sac", "sac", 13, signal.SIGKILL),
        ("sac", "random", 5, signal.SIGINT),
        ("cma-es", "cma-es", 16, signal.SIGKILL),
        ("cma-es", "random", 3, signal.SIGINT),
        ("two processes", "ppo", 11, signal.SIGKILL),
        ("two processes", "random", 4, signal.SIGTERM),
    ],
)
def test_an_ended_run_resumes_to_the_very_same_result_and_evaluates_nothing_twice(
    run_cli, flags, whole, measured, tmp_path, name, author, count, number
):
    out = tmp_path / "run"
    command = [*flags, *LEARNERS[name], "--out", out]
    running = Running(tmp_path / "first", *command, hold=(author, count))
    ended = running.when(lambda: len(lines(out, f'"by": "{author}"')) == count).end(number)
    said = "" if number == signal.SIGKILL else ONE_LINE
    assert ended == ({signal.SIGINT: 130, signal.SIGTERM: 143}.get(number, -number), "", said)
    assert running.none_is_left()
    known = lines(out)
    assert known == lines(whole(name))[: len(known)]
    earlier = len(measured())
    time.sleep(1.0 - time.time() % 1.0)  # event files are ordered by the second they were opened in
    assert run_cli(*command, "--resume").code == 0
    check_equal(out, whole(name))
    uniform = json.loads((out / "metrics.json").read_text())["plans"]["uniform"]
    again = measured()[earlier:]
    assert uniform in again  # every run begins with it: it is measured where all others are
    assert [plan for plan in again if plan in map(plan_of, known) and plan != uniform] == []


def test_a_run_killed_again_and_again_goes_on_each_time(run_cli, flags, whole, tmp_path):
    out = tmp_path / "run"
    command = [*flags, *LEARNERS["ppo"], "--baselines", "--out", out]
    Running(tmp_path / "1", *command).when(lambda: len(lines(out)) >= 5).end(signal.SIGKILL)
    for more in (12, 20):
        running = Running(tmp_path / str(more), *command, "--resume")
        running.when(lambda more=more: len(lines(out)) >= more).end(signal.SIGKILL)
    assert run_cli(*command, "--resume").code == 0
    assert lines(out) == lines(whole("ppo"), '"by": "ppo"')


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_run_it_evaluates_for(flags, tmp_path, number):
    out = tmp_path / "run"
    running = Running(tmp_path / "first", *flags, "--n-envs", "3", "--out", out, hold=("ppo", 6))
    running.when(lambda: len(lines(out)) == 6)
    code, _, err = running.end(number, group=number == signal.SIGINT)  # Ctrl-C reaches them all at once
    assert code in (130, 143, -signal.SIGKILL)
    assert err == ("" if number == signal.SIGKILL else ONE_LINE)
    assert running.none_is_left()


def test_a_run_ended_in_the_middle_of_an_evaluation_does_not_wait_for_it(flags, tmp_path):
    out = tmp_path / "run"
    command = [*flags, "--n-envs", "2", "--out", out]
    running = Running(tmp_path / "first", *command, slow_after=2).when((out / "slow").exists)
    begun = time.monotonic()
    assert running.end(signal.SIGTERM) == (143, "", ONE_LINE)
    assert time.monotonic() - begun < 120  # an evaluation takes ten minutes here
    assert running.none_is_left()


@pytest.mark.parametrize("former", [signal.SIG_DFL, signal.SIG_IGN])
def test_the_handler_of_a_caller_is_his_again_when_a_verb_ends(former):
    before = signal.signal(signal.SIGTERM, former)
    try:
        assert run_verb("describe", ["--model", "nothing"]) == 2
        assert signal.getsignal(signal.SIGTERM) == former
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_script_asked_to_end_says_in_one_line_how_to_go_on(flags, tmp_path):
    verb, *rest = flags
    search = ["--algo", "cma-es", "--episodes", "3000"]
    process = start(f"scripts/{verb}.py", *rest, *search, "--out", tmp_path / "out")
    while not lines(tmp_path / "out"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=300) == ("", ONE_LINE)
    assert process.returncode == 143


@pytest.mark.parametrize(("flags", "instead"), [([], ""), (["--overwrite"], " in place of --overwrite")])
def test_the_line_that_ends_a_run_names_a_command_that_goes_on(monkeypatch, capsys, flags, instead):
    def interrupt(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(prunegym.scripts.train, "run", interrupt)
    assert main(["train", *flags]) == 130
    assert (
        capsys.readouterr().err == f"prunegym: interrupted; the same command with --resume{instead} goes on\n"
    )


def test_a_cut_off_checkpoint_is_refused_and_the_run_left_as_it_is(run_cli, flags, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole("ppo"), run)
    model = run / "checkpoint" / "state.safetensors"
    model.write_bytes(model.read_bytes()[:5000])
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    outcome = run_cli(*flags, *LEARNERS["ppo"], "--out", run, "--resume")
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert str(model) in outcome.err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_log_cut_off_in_its_middle_is_refused(run_cli, flags, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole("ppo"), run)
    text = (run / "episodes.jsonl").read_text()
    (run / "episodes.jsonl").write_text(text[:40] + "}" + text[41:])
    outcome = run_cli(*flags, *LEARNERS["ppo"], "--out", run, "--resume")
    assert outcome.code == 2
    assert "episodes.jsonl: line 1 is damaged" in outcome.err
    assert len(outcome.err.splitlines()) == 1


@pytest.fixture(scope="module")
def command(material):
    inputs = 71  # learned from side by side: all training and reward images
    settings = ["--hyper", "n_epochs=1", "--hyper", f"episodes_per_update={inputs}"]
    flags = [*material.flags, "--budget", "macs=0.6", *settings, "--episodes", inputs * ROUND]
    return ["train-per-input", *flags]


@pytest.fixture(scope="module")
def uninterrupted(command, tmp_path_factory):
    """The folder of an uninterrupted run that learns for each input."""
    made = {}

    def run(*more):
        if more not in made:
            made[more] = tmp_path_factory.mktemp("whole") / "run"
            assert main([str(part) for part in [*command, *more, "--out", made[more]]]) == 0
            assert len(updates(made[more])) == 2 * ROUND
        return made[more]

    return run


@pytest.mark.parametrize("flag", ["--resume", "--overwrite"])
def test_a_run_at_work_is_left_alone(run_cli, flags, whole, tmp_path, flag):
    out = tmp_path / "run"
    command = [*flags, *LEARNERS["ppo"], "--out", out]
    running = Running(tmp_path / "first", *command, hold=("ppo", 3)).when(lambda: len(lines(out)) == 3)
    refused = run_cli(*command, flag)
    assert (refused.code, refused.err) == (
        2,
        f"prunegym: another process is at work in {out}; wait for it, end it, or give another --out\n",
    )
    removed = run_cli("prune", "--static-ratio", "0.5", "--out", out, "--overwrite")
    assert (removed.code, removed.err) == (2, refused.err)
    measured = run_cli("evaluate", "--out", out, "--overwrite")
    assert (measured.code, measured.err) == (2, refused.err)
    running.end(signal.SIGKILL)
    assert len(lines(out)) == 3
    time.sleep(1.0 - time.time() % 1.0)  # event files are ordered by the second they were opened in
    assert run_cli(*command, "--resume").code == 0
    check_equal(out, whole("ppo"))


class TestPerInput:
    """Two rounds, with checkpoints after the second and fourth update and at the end of each."""

    @pytest.fixture(autouse=True)
    def _saved_often(self, monkeypatch):
        monkeypatch.setattr(prunegym.agents.per_input.ppo, "SAVE_EVERY", 2)

    @pytest.mark.parametrize(
        ("count", "number", "more"),
        [
            (1, signal.SIGTERM, ()),  # before the first checkpoint
            (5, signal.SIGKILL, ()),  # the last update of a round
            (4, signal.SIGINT, ()),
            (6, signal.SIGKILL, ()),  # before the second round's first checkpoint
            (9, signal.SIGTERM, ()),
            (8, signal.SIGKILL, ("--tune-epochs", "1")),
        ],
    )
    def test_an_ended_run_resumes_to_the_very_same_result(
        self, run_cli, command, uninterrupted, tmp_path, count, number, more
    ):
        out, whole = tmp_path / "run", uninterrupted(*more)
        running = Running(tmp_path / "first", *command, *more, "--out", out, hold_update=count)
        ended = running.when(lambda: len(updates(out)) == count).end(number)
        said = "" if number == signal.SIGKILL else ONE_LINE
        assert ended == ({signal.SIGINT: 130, signal.SIGTERM: 143}.get(number, -number), "", said)
        assert updates(out) == updates(whole)[:count]
        time.sleep(1.0 - time.time() % 1.0)  # event files are ordered by the second they were opened in
        assert run_cli(*command, *more, "--out", out, "--resume").code == 0
        check_same(out, whole)

    def test_a_run_ended_again_and_again_goes_on_each_time(self, run_cli, command, uninterrupted, tmp_path):
        out = tmp_path / "run"
        for count in (4, 7, 9):
            resume = ["--resume"] if count > 4 else []
            running = Running(tmp_path / str(count), *command, "--out", out, *resume, hold_update=count)
            running.when(lambda count=count: len(updates(out)) == count).end(signal.SIGKILL)
            time.sleep(1.0 - time.time() % 1.0)  # event files are ordered by the second they were opened in
        assert run_cli(*command, "--out", out, "--resume").code == 0
        check_same(out, uninterrupted())

    def test_a_run_ended_after_learning_learns_nothing_again(
        self, run_cli, command, uninterrupted, monkeypatch, tmp_path
    ):
        def stop(*arguments):
            raise KeyboardInterrupt

        out = tmp_path / "run"
        with monkeypatch.context() as patch:
            patch.setattr(prunegym.scripts.train_per_input, "_write", stop)
            assert run_cli(*command, "--out", out).code == 130
        with monkeypatch.context() as patch:
            patch.setattr(InputPruningVectorEnv, "step", stop)
            assert run_cli(*command, "--out", out, "--resume").code == 0
        check_same(out, uninterrupted())

    def test_a_line_cut_short_is_written_anew(self, run_cli, command, uninterrupted, monkeypatch, tmp_path):
        out, whole = tmp_path / "run", uninterrupted()
        running = Running(tmp_path / "first", *command, "--out", out, hold_update=3)
        running.when(lambda: len(updates(out)) == 3).end(signal.SIGKILL)
        log = out / "updates.jsonl"
        log.write_bytes(log.read_bytes()[:-20])
        assert run_cli(*command, "--out", out, "--resume").code == 0
        assert updates(out) == updates(whole)

    def test_a_cut_off_checkpoint_is_refused_and_the_run_left_as_it_is(
        self, run_cli, command, uninterrupted, monkeypatch, tmp_path
    ):
        run = shutil.copytree(uninterrupted(), tmp_path / "run")
        model = run / "checkpoint" / "round-1" / "state.safetensors"
        model.write_bytes(model.read_bytes()[:5000])
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        monkeypatch.setattr("sys.argv", ["another", "command"])
        outcome = run_cli(*command, "--out", run, "--resume")
        assert outcome.code == 2
        assert len(outcome.err.splitlines()) == 1
        assert str(model) in outcome.err
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

    def test_only_the_same_run_is_resumed(self, command, uninterrupted, refused):
        for flag, value in (
            ("--episodes", "9"),
            ("--rounds", "3"),
            ("--seed", "1"),
        ):
            line = refused(*command, flag, value, "--out", uninterrupted(), "--resume")
            assert f"was begun with another {flag[2:]}; repeat its flags" in line


def updates(out):
    log = out / "updates.jsonl"
    return log.read_text().splitlines() if log.exists() else []


def check_same(out, whole):
    """Compare all that a run which learns for each input writes and that is no clock."""
    for name in ("plan.json", "metrics.json"):
        one, other = (json.loads((folder / name).read_text()) for folder in (out, whole))
        assert without_latency(one) == without_latency(other)
    assert updates(out) == updates(whole)
    weights = "compressed/model.safetensors"
    assert (out / weights).read_bytes() == (whole / weights).read_bytes()
    with np.load(out / "inputs.npz") as one, np.load(whole / "inputs.npz") as other:
        assert all((one[name] == other[name]).all() for name in other)
    assert curves(out) == curves(whole)
