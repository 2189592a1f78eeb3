import json

import pytest

from prunegym.agents.history import EpisodeHistory
from prunegym.agents.rollout import EpisodeResult

GROUPS = ("a/conv1", "a/conv2", "b/conv1")


def result(total, estimated=0.0, **ratios):
    plan = {
        name.replace("_", "/"): {"static_ratio": ratio, "runtime_ratio": ratio / 2}
        for name, ratio in ratios.items()
    }
    return EpisodeResult(plan, {"total": total, "estimated": estimated}, 0.9, {"macs": 0.5, "params": 0.5})


FIRST = result(0.5, a_conv1=0.2, a_conv2=0.4)
SECOND = result(0.7, b_conv1=0.6)


@pytest.fixture
def history():
    """Of two networks in turn."""
    made = EpisodeHistory(GROUPS)
    made.add(FIRST)
    made.add(SECOND)
    return made


def test_an_episode_of_one_network_leaves_the_other_ones_groups_blank(history):
    assert [set(plan) for plan in history.plans] == [{"a/conv1", "a/conv2"}, {"b/conv1"}]
    assert history.plans[1] == {"b/conv1": {"static_ratio": 0.6, "runtime_ratio": 0.3}}


def test_steps_are_those_that_the_episodes_took(history):
    assert (history.episodes, history.steps) == (2, 3)


def test_before_the_first_episode_there_is_nothing():
    history = EpisodeHistory(GROUPS)
    assert (history.episodes, history.steps, history.best, history.plans) == (0, 0, None, [])


def test_the_best_is_the_earliest_of_the_highest_that_met_all_images(history):
    for total, estimated in [(0.9, 1.0), (0.7, 0.0), (0.6, 0.0)]:
        history.add(result(total, estimated, b_conv1=0.1))
    assert history.best is SECOND
    assert history.best_episode == 2


def test_an_estimate_alone_is_no_best():
    history = EpisodeHistory(GROUPS)
    history.add(result(0.9, 1.0, b_conv1=0.1))
    assert history.best is None


def test_it_goes_to_json_and_back(history):
    back = EpisodeHistory.from_dict(json.loads(json.dumps(history.to_dict())))
    assert (back.sites, back.steps, back.episodes) == (GROUPS, 3, 2)
    assert (back.best, back.best_episode) == (SECOND, 2)
    assert back.plans == history.plans
    back.add(result(0.8, a_conv1=0.1))
    assert back.best_episode == 3
