import pickle

import numpy as np
import pytest

from agents.loss_model import FURTHER, LEAST_SHARE, LossModel
from agents.rollout import EpisodeResult

GROUPS = ("stem", "block", "head")


def plan(ratios, prefix=""):
    return {
        prefix + group: {"static_ratio": float(static), "runtime_ratio": float(runtime)}
        for group, (static, runtime) in zip(GROUPS, np.reshape(ratios, (-1, 2)), strict=True)
    }


def result(ratios, share, prefix="", reference=0.2):
    reward = {"loss": share * reference, "reference": reference, "total": 0.5}
    return EpisodeResult(plan(ratios, prefix), reward, 0.5, 0.5, 0.5)


def curved(ratios):
    """A share that no straight line follows: one group matters little, one only when pruned a lot."""
    static = np.reshape(ratios, (-1, 2))[:, 0]
    return float(np.exp(0.3 * static[0] + 2 * static[1] + 6 * static[2] ** 3))


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    ratios = rng.uniform(0, 0.9, (120, 6))
    ratios[:, 1::2] = 0.0  # no gates: three columns never change
    return ratios


def learned(rows, loss=curved):
    model = LossModel()
    for row in rows:
        model.add(result(row, loss(row)))
    model.fit()
    return model


def test_losses_of_plans_that_nobody_evaluated_are_foreseen(drawn):
    model = learned(drawn[:80])
    true = np.log([curved(row) for row in drawn[80:]])
    foreseen = np.log([model.foresee(plan(row)) for row in drawn[80:]])
    assert np.var(true - foreseen) < 0.01 * np.var(true)
    line = np.linalg.lstsq(np.c_[np.ones(80), drawn[:80]], np.log([curved(row) for row in drawn[:80]]))[0]
    assert np.var(true - np.c_[np.ones(40), drawn[80:]] @ line) > 0.05 * np.var(true)


def test_losses_are_shares_of_what_uniform_pruning_loses_within_the_budget(drawn):
    model = LossModel()
    for number, row in enumerate(drawn[:80]):
        model.add(result(row, curved(row), reference=(0.002, 0.05, 3.0)[number % 3]))
    model.fit()
    assert model.foresee(plan(drawn[80])) == pytest.approx(curved(drawn[80]), rel=0.1)


def test_a_later_fit_learns_from_what_came_since(drawn):
    model = learned(drawn[:6])
    before = model.foresee(plan(drawn[6]))
    for row in drawn[6:40]:
        model.add(result(row, curved(row)))
    assert model.foresee(plan(drawn[6])) == before
    model.fit()
    assert model.foresee(plan(drawn[6])) == pytest.approx(curved(drawn[6]), rel=0.1)
    assert len(model) == 40


def test_networks_are_kept_apart(drawn):
    model = LossModel()
    for row in drawn[:40]:
        model.add(result(row, curved(row), "small/"))
        model.add(result(row, 10 * curved(row), "large/"))
    model.fit()
    small, large = (model.foresee(plan(drawn[50], name)) for name in ("small/", "large/"))
    assert large / small == pytest.approx(10, rel=0.05)


def test_a_network_that_was_never_met_is_foreseen_to_lose_what_uniform_pruning_does(drawn):
    model = learned(drawn[:9])
    assert model.foresee(plan(drawn[9], "other/")) == 1.0


def test_nothing_is_foreseen_far_beyond_what_was_seen(drawn):
    rows = np.clip(drawn[:30], 0.4, 0.5)
    model = learned(rows, lambda row: float(np.exp(20 * row[0])))
    seen = np.log([np.exp(20 * row[0]) for row in rows])
    for row in drawn:
        assert seen.min() - FURTHER - 1e-6 <= np.log(model.foresee(plan(row))) <= seen.max() + FURTHER + 1e-6


@pytest.mark.parametrize("count", [1, 2, 30])
@pytest.mark.parametrize("loss", [0.0, 0.7])
def test_equal_losses_and_none_at_all_are_taken(drawn, count, loss):
    model = learned(drawn[:count], lambda row: loss)
    assert model.foresee(plan(drawn[50])) == pytest.approx(max(loss, LEAST_SHARE), rel=0.01)


def test_one_plan_over_and_over_is_taken(drawn):
    model = learned([drawn[0]] * 20)
    assert model.foresee(plan(drawn[0])) == pytest.approx(curved(drawn[0]))


def test_a_model_that_was_written_and_read_learns_on_as_if_it_had_not_been(drawn):
    model = learned(drawn[:30])
    copied = pickle.loads(pickle.dumps(model))
    assert copied.foresee(plan(drawn[50])) == model.foresee(plan(drawn[50]))
    for one in (model, copied):
        for row in drawn[30:40]:
            one.add(result(row, curved(row)))
        one.fit()
    assert copied.foresee(plan(drawn[50])) == model.foresee(plan(drawn[50]))
