import os
import stat
from contextlib import suppress

import pytest

from prunegym.pruning.files.writing import folder_written_whole, written_whole


def test_the_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "result.txt"
    with written_whole(path) as temporary:
        temporary.write_text("all")
        assert not path.exists()
        assert temporary.parent == path.parent  # the same file system, or the rename could not be atomic
    assert path.read_text() == "all"
    assert os.listdir(path.parent) == ["result.txt"]


def test_after_an_error_the_old_file_stays_and_nothing_else_does(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text("old")

    def stop_half_way():
        with written_whole(path) as temporary:
            temporary.write_text("new, but")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        stop_half_way()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.txt"]


def test_the_file_has_the_permissions_of_any_other(tmp_path):
    (tmp_path / "plain").write_text("")
    with written_whole(tmp_path / "whole"):
        pass
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "whole")]
    assert modes[0] == modes[1]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    with folder_written_whole(tmp_path / "c") as fresh:
        (fresh / "first").touch()
    with suppress(KeyError), folder_written_whole(tmp_path / "c") as fresh:
        (fresh / "second").touch()
        raise KeyError("halfway")
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["first"]
    with folder_written_whole(tmp_path / "c") as fresh:
        (fresh / "third").touch()
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["third"]
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
