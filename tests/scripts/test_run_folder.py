"""Who may write into a folder for results, and what a process that died in it leaves to the next."""

import os
import signal
import time

import pytest

from prunegym.pruning.files.writing import folder_written_whole, remove, written_whole
from prunegym.scripts.options.output import OutputConfig
from prunegym.scripts.options.parser import UsageError
from prunegym.scripts.run_folder import begin_run, check_empty, check_out, claimed, open_run


def output(folder, *, resume=False, overwrite=False):
    return OutputConfig(folder, overwrite, resume, as_json=False, flags={"seed": 1})


@pytest.fixture
def run(tmp_path):
    """The folder of a run."""
    out = tmp_path / "run"
    with claimed(out):
        open_run(out, {"seed": 1}, overwrite=False)
        (out / "checkpoint").mkdir()
        (out / "episodes.jsonl").write_text("{}\n")
    return out


def in_a_process_that_dies(block):
    child = os.fork()
    if not child:
        try:
            block()
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class TestTheLock:
    def test_two_processes_do_not_write_into_one_folder_whatever_their_caches(
        self, run, tmp_path, monkeypatch
    ):
        with claimed(run):
            monkeypatch.setenv("PRUNEGYM_CACHE", str(tmp_path / "another"))
            with pytest.raises(UsageError, match="another process is at work in"), claimed(run):
                pytest.fail("two at once")
        with claimed(run):
            pass

    def test_one_that_replaces_a_run_keeps_it(self, run):
        with claimed(run):
            open_run(run, {}, overwrite=True)
            with pytest.raises(UsageError, match="another process is at work in"), claimed(run):
                pytest.fail("two at once")

    def test_it_ends_with_its_process_though_a_fork_is_still_at_work(self, run):
        reader, writer = os.pipe()

        def fork_and_die():
            with claimed(run):
                if not os.fork():
                    os.write(writer, str(os.getpid()).encode())
                    time.sleep(60)
                else:
                    die()

        assert in_a_process_that_dies(fork_and_die) == signal.SIGKILL
        fork = int(os.read(reader, 20))
        try:
            with claimed(run):
                pass
        finally:
            os.kill(fork, signal.SIGKILL)


class TestAFolderIsMade:
    def test_with_its_parents_which_go_again_where_nothing_comes_of_it(self, tmp_path):
        with pytest.raises(UsageError, match="wrong budget"), claimed(tmp_path / "runs" / "today" / "first"):
            raise UsageError("wrong budget")
        assert os.listdir(tmp_path) == []

    def test_what_was_there_before_stays(self, tmp_path):
        out = tmp_path / "runs" / "first"
        out.mkdir(parents=True)
        with pytest.raises(UsageError, match="wrong budget"), claimed(out):
            raise UsageError("wrong budget")
        assert out.is_dir()

    def test_one_that_was_removed_meanwhile_is_no_success(self, tmp_path):
        out = tmp_path / "run"

        def remove_halfway():
            with claimed(out):
                begin_run(output(out))
                remove(out)
                with written_whole(out / "metrics.json") as temporary:  # makes the folder again
                    temporary.write_text("{}")

        with pytest.raises(UsageError, match=rf"{out} was removed while the run wrote into it"):
            remove_halfway()


class TestAfterADeath:
    @pytest.mark.parametrize("way", ["plain", "resume", "overwrite"])
    def test_before_the_configuration_is_written_the_folder_counts_as_empty(self, tmp_path, way):
        out = tmp_path / "run"

        def begin():
            with claimed(out), written_whole(out / "config.json") as temporary:
                temporary.write_text("{")
                die()

        assert in_a_process_that_dies(begin) == signal.SIGKILL
        assert [path.name[:13] for path in out.iterdir()] == [".config.json."]
        again = output(out, **{} if way == "plain" else {way: True})
        check_out(again)  # one process of several, which makes no claim
        with claimed(out):
            assert os.listdir(out) == []
            check_out(again)
            begin_run(again)
        assert os.listdir(out) == ["config.json"]

    def test_what_it_was_writing_is_removed_wherever_it_lies(self, run):
        def write():
            with (
                written_whole(run / "checkpoint" / "state.safetensors"),
                folder_written_whole(run / "c") as new,
            ):
                (new / "model").touch()
                die()

        in_a_process_that_dies(write)
        assert len(list(run.rglob("*.partial"))) == 2
        with claimed(run):
            assert not list(run.rglob("*.partial"))

    def test_what_another_process_is_writing_is_left_alone(self, run):
        with written_whole(run / "report.html") as temporary:
            with claimed(run):
                assert temporary.exists()
            with written_whole(run / "report.html") as other:
                assert temporary.exists()
                other.write_text("sooner")
            temporary.write_text("later")
        assert (run / "report.html").read_text() == "later"

    def test_while_a_run_is_replaced_the_folder_is_still_known_as_a_runs(self, run, monkeypatch):
        def begin():
            with claimed(run):
                monkeypatch.setattr("prunegym.scripts.run_folder.write_json", lambda *what: die())
                open_run(run, {}, overwrite=True)

        assert in_a_process_that_dies(begin) == signal.SIGKILL
        assert os.listdir(run) == ["config.json"]
        check_empty(run, overwrite=True)


class TestWhatIsLeftOfARun:
    def rest(self, run, *names):
        (run / "config.json").unlink()
        for name in names:
            (run / name).touch()
        return run

    def test_whose_configuration_is_gone_may_be_replaced(self, run):
        check_empty(self.rest(run, "metrics.json"), overwrite=True)
        with pytest.raises(UsageError, match=r"holds no run to resume .*, or --overwrite"):
            check_out(output(run, resume=True))

    def test_is_left_alone_where_there_is_anything_else(self, run):
        with pytest.raises(UsageError, match="is not the folder of a run and is left alone"):
            check_empty(self.rest(run, "metrics.json", "thesis.tex"), overwrite=True)

    def test_a_plan_alone_is_none(self, tmp_path):
        (tmp_path / "plan.json").touch()
        with pytest.raises(UsageError, match="is not the folder of a run and is left alone"):
            check_empty(tmp_path, overwrite=True)


class TestLinks:
    """A folder from somewhere else may hold links, through which a run would write outside of it."""

    @pytest.mark.parametrize("name", ["episodes.jsonl.link", "checkpoint/state.safetensors", "pictures"])
    @pytest.mark.parametrize("make", [os.symlink, lambda target, link: os.mkfifo(link)])
    def test_a_run_that_holds_one_is_not_resumed(self, run, tmp_path, name, make):
        (tmp_path / "mine").mkdir()
        make(tmp_path / "mine", run / name)
        with claimed(run), pytest.raises(UsageError, match=rf"{run / name} is a link or a device"):
            check_out(output(run, resume=True))

    def test_it_is_replaced_without_touching_what_they_lead_to(self, run, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.tex").write_text("years of work")
        os.symlink(tmp_path / "mine", run / "pictures")
        with claimed(run):
            open_run(run, {}, overwrite=True)
        assert os.listdir(run) == ["config.json"]
        assert os.listdir(tmp_path / "mine") == ["thesis.tex"]

    def test_the_folder_itself_may_be_one(self, run, tmp_path):
        os.symlink(run, tmp_path / "latest")
        with claimed(tmp_path / "latest"):
            check_out(output(tmp_path / "latest", overwrite=True))
            open_run(tmp_path / "latest", {}, overwrite=True)
        assert os.listdir(run) == ["config.json"]
        with claimed(run), pytest.raises(UsageError, match="at work"), claimed(tmp_path / "latest"):
            pass
