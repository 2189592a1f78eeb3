import json

import pytest

from prunegym.agents.episode_log import read_episodes
from prunegym.agents.errors import AgentError
from prunegym.agents.pictures.scores import scores

LINE = {
    "by": "ppo",
    "plan": {"conv1": {"static_ratio": 0.5, "runtime_ratio": 0.25}},
    "reward": {"divergence": 0.2, "total": 0.6},
    "accuracy": 0.8,
    "shares": {"macs": 0.5, "params": 0.4},
}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "episodes.jsonl"


def test_every_line_is_an_episode_in_its_order(file):
    file.write_text("".join(json.dumps({**LINE, "by": by, "more": 1}) + "\n" for by in ("ppo", "random")))
    first, second = read_episodes(file)
    assert (first.by, second.by) == ("ppo", "random")
    assert first.result.to_dict() == {key: LINE[key] for key in LINE if key != "by"}


def test_a_run_that_evaluated_nothing_yet_has_none(file):
    assert read_episodes(file) == []
    file.touch()
    assert read_episodes(file) == []


@pytest.mark.parametrize("kept", [1, 20, 60, len(json.dumps(LINE)) - 1])
def test_a_last_line_cut_short_is_left_out(file, kept):
    file.write_text(json.dumps(LINE) + "\n" + json.dumps(LINE)[:kept])
    assert len(read_episodes(file)) == 1


def test_a_last_line_cut_within_a_letter_is_left_out(file):
    file.write_bytes(json.dumps(LINE).encode() + b'\n{"by": "\xc3')
    assert len(read_episodes(file)) == 1


def test_a_whole_last_line_counts_without_its_line_end(file):
    file.write_text(json.dumps(LINE) + "\n" + json.dumps(LINE))
    assert len(read_episodes(file)) == 2


@pytest.mark.parametrize(
    "line",
    [
        '{"by": "pp',
        "[]",
        json.dumps({**LINE, "reward": {}}),
        json.dumps({**LINE, "shares": {"macs": "half"}}),
        json.dumps({**LINE, "plan": {"a": {"static_ratio": "half"}}}),
    ],
)
def test_a_damaged_line_before_the_last_is_named(file, line):
    file.write_text(f"{json.dumps(LINE)}\n{line}\n{json.dumps(LINE)}\n")
    with pytest.raises(AgentError, match=r"episodes\.jsonl: line 2"):
        read_episodes(file)


def test_a_whole_last_line_that_is_no_episode_is_not_taken_for_a_cut_one(file):
    file.write_text("{}")
    with pytest.raises(AgentError, match="line 1"):
        read_episodes(file)


def test_episodes_are_scored_by_accuracy_or_all_of_them_by_reward(episode):
    labelled, not_labelled = episode(0.8), episode(0.7, labelled=False)
    assert scores([labelled, labelled]) == ([0.8, 0.8], True)
    assert scores([labelled, not_labelled]) == ([pytest.approx(0.55), pytest.approx(0.45)], False)
