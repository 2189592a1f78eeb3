from pathlib import Path

import pytest

from prunegym.pruning.files.cache import cache_folder, read_cached, write_cached


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"PRUNEGYM_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/prunegym"),
        ({"HOME": "/c"}, "/c/.cache/prunegym"),
    ],
)
def test_the_cache_is_where_the_environment_says(monkeypatch, variables, folder):
    for name in ("PRUNEGYM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(folder)


class TestCached:
    def test_what_was_put_there_comes_back(self, tmp_path):
        write_cached(tmp_path / "new" / "entry", b"first\nsecond\n")
        assert read_cached(tmp_path / "new" / "entry") == b"first\nsecond\n"
        assert read_cached(tmp_path / "missing") is None

    @pytest.mark.parametrize("content", [b"", b"\n", b"first\nsecond\n", b"0" * 64 + b"\nfirst"])
    def test_what_does_not_have_its_checksum_is_left_aside(self, tmp_path, content, caplog):
        (tmp_path / "entry").write_bytes(content)
        assert read_cached(tmp_path / "entry") is None
        assert caplog.messages == [f"{tmp_path / 'entry'} is damaged and left aside"]

    def test_a_cache_that_cannot_be_written_or_read_stops_nothing(self, tmp_path, caplog):
        (tmp_path / "file").touch()
        write_cached(tmp_path / "file" / "entry", b"content")
        assert read_cached(tmp_path / "file" / "entry") is None
        assert [message.partition(": ")[0] for message in caplog.messages] == [
            f"{tmp_path / 'file' / 'entry'} is not cached and will be made again next time"
        ]
