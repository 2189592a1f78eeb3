"""The driver: how many evaluations, in what order, by how many environments."""

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from prunegym.agents.errors import AgentError
from prunegym.agents.search import SEARCHES, search

ALL = np.ones((5, 2), dtype=bool)


class Scripted:
    """Proposes four episodes at a time, each known by its first static action, and notes calls of `tell`."""

    def __init__(self, admitted, seed):
        self.told = []
        self.static_actions = iter(np.linspace(0.0, 0.7, 64))

    def propose(self):
        return [
            np.full((5, 2), action, dtype=np.float32)
            for _, action in zip(range(4), self.static_actions, strict=False)
        ]

    def tell(self, proposals, totals):
        self.told.append((proposals, totals))

    def answer(self):
        return np.full((5, 2), -0.9, dtype=np.float32)


@pytest.fixture
def scripted(monkeypatch):
    made = []
    monkeypatch.setitem(SEARCHES._entries, "scripted", lambda *args: made.append(Scripted(*args)) or made[-1])
    return made


def static_actions(results):
    """The static actions of the first group that the toy's ratios stand for."""
    return [round(result.plan["layer0.conv"]["static_ratio"] / 0.45 - 1, 4) for result in results]


@pytest.mark.parametrize("name", list(SEARCHES))
class TestEverySearch:
    @pytest.mark.parametrize("episodes", [1, 2, 23, 60])
    def test_spends_every_episode_and_no_more(self, name, episodes, env):
        seen = []
        found = search(env, name, admitted=ALL, episodes=episodes, seed=0, on_episode=seen.append)
        assert env.evaluations == found.episodes == len(found.results) == episodes
        assert seen == found.results

    def test_repeats_with_its_seed(self, name, toy):
        first, again, other = (
            search(toy(), name, admitted=ALL, episodes=45, seed=seed).results for seed in (0, 0, 1)
        )
        assert first == again != other

    @pytest.mark.parametrize("count", [2, 3, 32])
    def test_finds_the_same_however_many_environments_there_are(self, name, count, toy):
        many = DummyVecEnv([toy] * count)
        alone = search(toy(), name, admitted=ALL, episodes=45, seed=0)
        assert search(many, name, admitted=ALL, episodes=45, seed=0) == alone

    def test_candidates_are_the_best_explored_and_what_it_decides_itself(self, name, env):
        found = search(env, name, admitted=ALL, episodes=60, seed=0)
        answers = SEARCHES[name](ALL, 0).answer() is not None
        explored = found.results[:-1] if answers else found.results
        assert found.best.total == max(result.total for result in explored)
        assert found.final == (found.results[-1] if answers else found.best)


@pytest.mark.parametrize("name", sorted(set(SEARCHES) - {"random"}))
def test_a_search_that_learns_beats_random_search(name, toy):
    for seed in range(3):
        random = search(toy(), "random", admitted=ALL, episodes=200, seed=seed)
        learned = search(toy(), name, admitted=ALL, episodes=200, seed=seed)
        assert 1.25 - learned.best.total < 0.5 * (1.25 - random.best.total)
        assert learned.final.total > random.best.total


@pytest.mark.parametrize("count", [1, 3])
def test_whole_generations_are_told_in_order_and_the_answer_comes_last(scripted, toy, count):
    found = search(DummyVecEnv([toy] * count), "scripted", admitted=ALL, episodes=11, seed=0)
    expected = np.linspace(0.0, 0.7, 64)[:10]
    assert static_actions(found.results) == pytest.approx([*expected, -0.9], abs=1e-3)
    (method,) = scripted
    told = [float(actions[0, 1]) for proposals, _ in method.told for actions in proposals]
    assert told == pytest.approx(expected[:8])  # the third generation was cut short
    assert [total for _, totals in method.told for total in totals] == [r.total for r in found.results[:8]]
    assert found.final == found.results[-1]


def test_an_idle_environment_repeats_its_last_plan(scripted, toy):
    class Recording(toy):
        def __init__(self):
            super().__init__()
            self.seen = []

        def step(self, action):
            if not self._actions:
                self.seen.append(round(float(action[1]), 2))
            return super().step(action)

    many = DummyVecEnv([Recording] * 3)
    search(many, "scripted", admitted=ALL, episodes=9, seed=0)
    a, b, c, d, e, f, g, h = np.linspace(0.0, 0.7, 64)[:8].round(2)
    assert many.get_attr("seen") == [[a, d, e, h, -0.9], [b, b, f, f, f], [c, c, g, g, g]]


def test_every_environment_is_seeded_once(toy):
    class Recording(toy):
        def __init__(self):
            super().__init__()
            self.seeds = []

        def reset(self, *, seed=None, options=None):
            self.seeds.append(seed)
            return super().reset(seed=seed)

    many = DummyVecEnv([Recording] * 2)
    search(many, "random", admitted=ALL, episodes=4, seed=7)
    assert many.get_attr("seeds") == [[7, None, None], [8, None, None]]


def test_the_best_is_one_that_was_explored_if_any_was(toy, scripted):
    class Frugal(toy):
        def _evaluate(self):
            return super()._evaluate() | {"reward": {"total": -float(self._actions[0][1])}}

    found = search(Frugal(), "scripted", admitted=ALL, episodes=9, seed=0)
    assert found.best is found.results[0]
    assert found.final.total > found.best.total
    alone = search(Frugal(), "scripted", admitted=ALL, episodes=1, seed=0)
    assert alone.best is alone.final


def test_of_equal_rewards_the_earlier_is_best(toy, scripted, monkeypatch):
    class Flat(toy):
        def _evaluate(self):
            return super()._evaluate() | {"reward": {"total": 0.5}}

    found = search(Flat(), "scripted", admitted=ALL, episodes=9, seed=0)
    assert found.best is found.results[0]


@pytest.mark.parametrize("groups", [4, 6, 10])
def test_episodes_of_another_length_are_refused(env, groups):
    with pytest.raises(AgentError, match=f"does not take {groups} steps; `admitted` needs one row per site"):
        search(env, "random", admitted=np.ones((groups, 2), dtype=bool), episodes=3, seed=0)


def test_a_search_without_episodes_is_refused(env):
    with pytest.raises(AgentError, match="episodes must be 1 or more, got 0"):
        search(env, "random", admitted=ALL, episodes=0, seed=0)
