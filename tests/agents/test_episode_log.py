import json

import pytest

from prunegym.agents.episode_log import EpisodeLog
from prunegym.agents.errors import CheckpointError
from prunegym.agents.rollout import EpisodeResult


def result(number):
    plan = {"conv": {"static_ratio": number / 10, "runtime_ratio": 0.0}}
    return EpisodeResult(plan, {"total": 1 / (3 + number)}, None, {"macs": 0.5, "params": 0.4})


@pytest.fixture
def log(tmp_path):
    """Three of ppo's episodes and two of random's, in turn."""
    log = EpisodeLog(tmp_path / "episodes.jsonl")
    for number, author in enumerate(["ppo", "random", "ppo", "random", "ppo"]):
        log.append(author, result(number))
    return log


def lines(log):
    return log.path.read_bytes().splitlines(keepends=True)


def authors_and_numbers(log):
    return [(by, round(10 * one.plan["conv"]["static_ratio"])) for by, one in log.entries()]


def test_a_file_that_does_not_exist_yet_has_no_entries(tmp_path):
    assert list(EpisodeLog(tmp_path / "none").entries()) == []


def test_entries_are_what_was_appended_to_the_last_bit(log):
    assert [one for _, one in log.entries()] == [result(number) for number in range(5)]
    assert [by for by, _ in log.entries()] == ["ppo", "random", "ppo", "random", "ppo"]


def test_a_line_is_on_disk_when_append_returns(log):
    assert len(lines(log)) == 5
    assert json.loads(lines(log)[-1]) == {"by": "ppo", **result(4).to_dict()}


def test_a_last_line_cut_anywhere_is_passed_over(log):
    whole = lines(log)
    for length in range(1, len(whole[-1]) - 1):
        log.path.write_bytes(b"".join(whole[:-1]) + whole[-1][:length])
        assert len(list(log.entries())) == 4
    log.path.write_bytes(b"".join(whole)[:-1])  # only the line's end is missing
    assert len(list(log.entries())) == 5


@pytest.mark.parametrize(
    "damage", [b'{"by": "ppo", "pl', b"[]", b'{"by": "ppo"}', b"7", b"", b"\x00\xff\x00", b'"text"']
)
def test_an_earlier_damaged_line_is_refused_by_its_number(log, damage):
    whole = lines(log)
    log.path.write_bytes(whole[0] + damage + b"\n" + b"".join(whole[2:]))
    with pytest.raises(
        CheckpointError, match=r"episodes\.jsonl: line 2 is damaged \(.*\); remove it, or start afresh$"
    ):
        list(log.entries())


def test_a_line_whose_plan_makes_no_sense_is_refused(log):
    whole = lines(log)
    log.path.write_bytes(whole[0] + whole[1].replace(b'"static_ratio": 0.1', b'"static_ratio": 2') + whole[2])
    with pytest.raises(CheckpointError, match=r"line 2 is damaged \(.*static_ratio must lie in \[0, 1\)"):
        list(log.entries())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("by", "x" * 1000),
        ("by", 3),
        ("accuracy", 10**400),
        ("accuracy", "0.5"),
        ("reward", {}),
        ("reward", {"total": 10**400}),
        ("reward", {"total": 1e300}),
        ("shares", {}),
        ("shares", [1]),
        ("plan", {"a": {"static_ratio": 10**400}}),
    ],
)
def test_a_line_with_a_value_that_makes_no_sense_is_refused(log, key, value):
    whole = lines(log)
    line = json.dumps({**json.loads(whole[1]), key: value}).encode()
    log.path.write_bytes(whole[0] + line + b"\n" + whole[2])
    with pytest.raises(CheckpointError, match="line 2 is damaged"):
        list(log.entries())


def test_bytes_that_are_no_text_are_passed_over_at_the_end(log):
    log.path.write_bytes(b"".join(lines(log)) + b"\x00\xff\x00")
    assert len(list(log.entries())) == 5


@pytest.mark.parametrize("count", [0, 1, 2])
def test_what_differs_from_an_authors_later_lines_takes_their_place_alone(log, count):
    log.keep("ppo", count)
    log.append("ppo", result(9))
    mine = [0, 2, 4][:count]
    kept = [
        ("random" if number % 2 else "ppo", number) for number in range(5) if number % 2 or number in mine
    ]
    assert authors_and_numbers(log) == [*kept, ("ppo", 9)]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_what_repeats_an_authors_later_lines_is_not_written_twice(log, count):
    before = lines(log)
    log.keep("ppo", count)
    for number in [0, 2, 4][count:]:
        assert lines(log) == before
        log.append("ppo", result(number))
    log.append("ppo", result(9))
    assert [*before, lines(log)[-1]] == lines(log)
    assert authors_and_numbers(log)[-1] == ("ppo", 9)


def test_a_part_repeated_stays_and_the_rest_is_replaced(log):
    log.keep("ppo", 1)
    for number in (2, 8, 9):
        log.append("ppo", result(number))
    mine = [number for by, number in authors_and_numbers(log) if by == "ppo"]
    assert mine == [0, 2, 8, 9]


def test_what_follows_a_cut_line_begins_a_line_of_its_own(log):
    log.path.write_bytes(b"".join(lines(log))[:-20])
    log.keep("ppo", 9)
    log.append("ppo", result(7))
    assert authors_and_numbers(log) == [("ppo", 0), ("random", 1), ("ppo", 2), ("random", 3), ("ppo", 7)]


def test_keep_leaves_nothing_half_written(log, monkeypatch):
    def die(*arguments):
        raise SystemExit

    before = b"".join(lines(log))[:-20]
    log.path.write_bytes(before)
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", die)
        with pytest.raises(SystemExit):
            log.keep("ppo", 3)
    assert log.path.read_bytes() == before
    log.keep("ppo", 3)
    assert [path.name for path in log.path.parent.iterdir()] == [log.path.name]
