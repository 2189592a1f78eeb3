"""What every search must do, and what each is known by."""

import numpy as np
import pytest

from prunegym.agents.search import SEARCHES, Space
from prunegym.pruning.errors import UnknownNameError

GATED = np.array([[True, True], [False, True], [False, True], [True, True], [False, True]])  # gates, channels
LEARNING = sorted(set(SEARCHES) - {"random"})


def spent(search, total, evaluations):
    """Let `search` propose and be told until it has seen that many evaluations."""
    count = 0
    while count < evaluations:
        proposals = search.propose()
        search.tell(proposals, [total(actions) for actions in proposals])
        count += len(proposals)
    return search


def closeness(target):
    return lambda actions: -float(((actions[:, 1] - target) ** 2).sum())


@pytest.mark.parametrize("name", list(SEARCHES))
class TestEverySearch:
    def test_proposes_plain_episodes_within_the_box(self, name):
        search = spent(SEARCHES[name](GATED, 0), closeness(5.0), 300)
        for actions in search.propose():
            assert actions.shape == (5, 2)
            assert actions.dtype == np.float32
            assert abs(actions).max() <= 1.0

    def test_starts_centred_on_the_uniform_plan(self, name):
        proposals = [
            actions
            for seed in range(40)
            for actions in SEARCHES[name](np.ones((3, 2), dtype=bool), seed).propose()
        ]
        assert abs(np.mean(proposals, axis=0)).max() < 0.15

    def test_asks_for_no_gate_where_none_fits_and_for_any_elsewhere(self, name):
        search = spent(SEARCHES[name](GATED, 0), closeness(0.5), 60)
        runtime = np.stack([actions[:, 0] for _ in range(30) for actions in search.propose()])
        assert (runtime[:, [1, 2, 4]] == -1.0).all()
        assert (runtime[:, [0, 3]].std(axis=0) > 0).all()

    def test_repeats_with_its_seed_alone(self, name):
        def last(seed):
            np.random.seed(seed + 7)  # noqa: NPY002 (the state that must not matter)
            return spent(SEARCHES[name](GATED, seed), closeness(0.5), 60).propose()

        np.testing.assert_array_equal(last(0), last(0))
        assert not np.array_equal(last(0), last(1))

    def test_leaves_the_global_state_the_folder_and_the_terminal_alone(
        self, name, tmp_path, monkeypatch, capfd
    ):
        monkeypatch.chdir(tmp_path)
        before = np.random.get_state()[1].copy()  # noqa: NPY002 (whether another's is used is the question)
        spent(SEARCHES[name](GATED, 0), closeness(0.5), 100).answer()
        np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002
        assert list(tmp_path.iterdir()) == []
        assert capfd.readouterr() == ("", "")

    def test_goes_on_where_all_plans_are_equally_good(self, name):
        search = spent(SEARCHES[name](GATED, 0), lambda actions: 0.5, 2000)
        assert all(np.isfinite(actions).all() for actions in search.propose())

    def test_goes_on_after_it_has_converged(self, name):
        search = spent(SEARCHES[name](GATED, 0), closeness(0.25), 5000)
        assert all(np.isfinite(actions).all() for actions in search.propose())

    def test_searches_a_single_number(self, name):
        totals = []
        spent(
            SEARCHES[name](np.array([[False, True]]), 0),
            lambda actions: totals.append(-abs(actions[0, 1] - 0.3)) or totals[-1],
            100,
        )
        assert max(totals) > -0.02


@pytest.mark.parametrize("name", LEARNING)
def test_every_search_that_learns_concentrates_on_what_is_good(name):
    search = spent(SEARCHES[name](GATED, 0), closeness(0.5), 400)
    proposals = [actions for _ in range(40) for actions in search.propose()]
    assert abs(np.mean(proposals, axis=0)[:, 1] - 0.5).max() < 0.1


def test_an_unknown_search_names_the_nearest_and_the_rest():
    with pytest.raises(UnknownNameError, match=r"Did you mean 'cma-es'.*hill-climbing, random"):
        SEARCHES["cmaes"]


def test_a_space_counts_only_what_there_is_to_choose():
    space = Space(GATED)
    assert space.size == 7
    actions = space.actions(np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, -3.0]))
    np.testing.assert_array_equal(actions[:, 1], np.float32([0.1, 0.2, 0.3, 0.4, 0.5]))
    np.testing.assert_array_equal(actions[:, 0], np.float32([0.6, -1, -1, -1, -1]))
    np.testing.assert_allclose(space.vector(actions), [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, -1.0])


def test_random_search_covers_the_whole_box_evenly():
    search = SEARCHES["random"](GATED, 0)
    drawn = np.stack([actions for _ in range(50) for actions in search.propose()])[:, :, 1]
    assert np.histogram(drawn, bins=4, range=(-1, 1))[0] == pytest.approx([500] * 4, rel=0.1)
    assert search.answer() is None


class TestHillClimbing:
    def climber(self, *totals):
        search = SEARCHES["hill-climbing"](np.ones((5, 2), dtype=bool), 0)
        for total in totals:
            search.tell(search.propose(), [total])
        return search

    def reach(self, search, base):
        """The typical change of a changed number."""
        changes = np.stack([search.propose()[0] - base for _ in range(300)])
        return abs(changes[changes != 0]).mean()

    def test_evaluates_the_uniform_plan_first(self):
        assert not self.climber().propose()[0].any()

    def test_changes_a_few_numbers_of_the_best_plan(self):
        search = self.climber(1.0, 0.0, 0.0, 0.0)
        assert all((search.propose()[0] != 0).sum() == 3 for _ in range(20))

    def test_moves_to_what_is_no_worse_and_stays_otherwise(self):
        search = self.climber(0.0)
        first, *_ = search.propose()
        search.tell([first], [0.0])
        assert all(((search.propose()[0] != first).sum()) <= 3 for _ in range(20))
        search.tell(search.propose(), [-1.0])
        assert all(((search.propose()[0] != first).sum()) <= 3 for _ in range(20))

    def test_one_step_kept_in_five_leaves_the_step_size_and_others_change_it(self):
        zero = np.zeros((5, 2), dtype=np.float32)

        def reach(kept):
            search = self.climber(0.0)
            for keep in kept:
                search.tell([zero], [0.0 if keep else -1.0])
            return self.reach(search, zero)

        start = reach([])
        assert reach([True] + [False] * 4) == pytest.approx(start)
        assert reach([False] * 4) < 0.8 * start
        assert reach([True] * 2) > 1.1 * start
        assert reach([False] * 100) > 0.01
        assert reach([True] * 100) < 0.8

    def test_has_no_answer_but_the_best_plan(self):
        assert self.climber(0.0, 1.0).answer() is None


class TestCrossEntropy:
    def test_answers_with_the_mean_of_the_best_quarter(self):
        search = SEARCHES["cross-entropy"](GATED, 0)
        assert not search.answer()[:, 1].any()
        proposals = search.propose()
        totals = [float(place * 7 % 20) for place in range(20)]
        search.tell(proposals, totals)
        best = [proposals[totals.index(total)] for total in (15.0, 16.0, 17.0, 18.0, 19.0)]
        np.testing.assert_allclose(search.answer(), np.mean(best, axis=0), atol=1e-6)

    def test_takes_the_spread_of_the_best_quarter_but_keeps_exploring(self):
        search = SEARCHES["cross-entropy"](np.array([[False, True]]), 0)
        wide = [np.float32([[-1.0, action]]) for action in (-0.5, 0.5, -0.5, 0.5, 0.0)]
        search.tell(wide, [0.0] * 5)
        assert self.spread(search) == pytest.approx(np.sqrt(0.2), rel=0.1)
        search.tell(wide[:1] * 20, [0.0] * 20)
        assert self.spread(search) == pytest.approx(0.05, rel=0.1)

    def spread(self, search):
        return np.std([actions[0, 1] for _ in range(50) for actions in search.propose()])


class TestCmaEs:
    def test_answers_with_the_mean_as_it_is_evaluated_not_as_it_is_kept(self):
        search = SEARCHES["cma-es"](GATED, 0)
        assert not search.answer()[:, 1].any()
        for target in (0.93, 1.0):  # where the package bends its coordinates to keep the bounds
            search = spent(SEARCHES["cma-es"](GATED, 0), closeness(target), 1500)
            np.testing.assert_allclose(search.answer()[:, 1], target, atol=1e-3)
