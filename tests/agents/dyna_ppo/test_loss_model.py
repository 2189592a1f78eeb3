import pickle

import numpy as np
import pytest

from prunegym.agents.dyna_ppo.loss_model import MAX_LOG_EXTRAPOLATION, MIN_RELATIVE_LOSS, LossModel
from prunegym.agents.rollout import EpisodeResult

GROUPS = ("stem", "block", "head")


def plan(ratios, prefix=""):
    return {
        prefix + group: {"static_ratio": float(static), "runtime_ratio": float(runtime)}
        for group, (static, runtime) in zip(GROUPS, np.reshape(ratios, (-1, 2)), strict=True)
    }


def result(ratios, share, prefix="", reference=0.2, expected=1.0):
    reward = {"loss": share * reference, "reference": reference, "expected": expected, "total": 0.5}
    return EpisodeResult(plan(ratios, prefix), reward, 0.5, {"macs": 0.5, "params": 0.5})


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


def test_losses_of_plans_that_nobody_evaluated_are_predicted(drawn):
    model = learned(drawn[:80])
    true = np.log([curved(row) for row in drawn[80:]])
    predicted = np.log([model.predict(plan(row), 1.0) for row in drawn[80:]])
    assert np.var(true - predicted) < 0.01 * np.var(true)
    line = np.linalg.lstsq(np.c_[np.ones(80), drawn[:80]], np.log([curved(row) for row in drawn[:80]]))[0]
    assert np.var(true - np.c_[np.ones(40), drawn[80:]] @ line) > 0.05 * np.var(true)


def test_losses_are_shares_of_what_uniform_pruning_loses_within_the_budget(drawn):
    model = LossModel()
    for number, row in enumerate(drawn[:80]):
        model.add(result(row, curved(row), reference=(0.002, 0.05, 3.0)[number % 3]))
    model.fit()
    assert model.predict(plan(drawn[80]), 1.0) == pytest.approx(curved(drawn[80]), rel=0.1)


def test_a_later_fit_learns_from_what_came_since(drawn):
    model = learned(drawn[:6])
    before = model.predict(plan(drawn[6]), 1.0)
    for row in drawn[6:40]:
        model.add(result(row, curved(row)))
    assert model.predict(plan(drawn[6]), 1.0) == before
    model.fit()
    assert model.predict(plan(drawn[6]), 1.0) == pytest.approx(curved(drawn[6]), rel=0.1)
    assert len(model) == 40


def test_networks_are_kept_apart(drawn):
    model = LossModel()
    for row in drawn[:40]:
        model.add(result(row, curved(row), "small/"))
        model.add(result(row, 10 * curved(row), "large/"))
    model.fit()
    small, large = (model.predict(plan(drawn[50], name), 1.0) for name in ("small/", "large/"))
    assert large / small == pytest.approx(10, rel=0.05)


def test_a_network_that_was_never_met_is_predicted_to_lose_what_is_expected(drawn):
    model = learned(drawn[:9])
    assert model.predict(plan(drawn[9], "other/"), 0.7) == 0.7


def loss_of(row, expected):
    """A tenth of the plans' differences is in no expectation."""
    return 2 * expected**0.8 * curved(row) ** 0.1


def mean_error(count, drawn, expectations, observed):
    model = LossModel()
    for row, expected in zip(drawn[:count], expectations, strict=False):
        model.add(result(row, loss_of(row, expected), expected=observed(expected)))
    model.fit()
    errors = [
        np.log(model.predict(plan(row), observed(expected)) / loss_of(row, expected))
        for row, expected in zip(drawn[60:], expectations[60:], strict=True)
    ]
    return float(np.abs(errors).mean())


def test_what_is_expected_tells_of_plans_where_few_were_evaluated(drawn):
    expectations = np.random.default_rng(1).uniform(0.3, 3.0, len(drawn))
    ignored = mean_error(6, drawn, expectations, lambda expected: 1.0)
    assert mean_error(6, drawn, expectations, lambda expected: expected) < 0.5 * ignored


def test_how_far_to_trust_what_is_expected_is_learned(drawn):
    expectations = np.random.default_rng(1).uniform(0.3, 3.0, len(drawn))
    ignored = mean_error(60, drawn, expectations, lambda expected: 1.0)
    assert mean_error(60, drawn, expectations, lambda expected: expected) < 0.1 * ignored
    assert mean_error(60, drawn, expectations, lambda expected: 1 / expected) < 0.2 * ignored  # it was wrong


def test_nothing_at_all_may_be_expected(drawn):
    model = LossModel()
    for row in drawn[:30]:
        model.add(result(row, curved(row), expected=0.0))
    model.fit()
    assert model.predict(plan(drawn[50]), 0.0) == pytest.approx(curved(drawn[50]), rel=0.2)


def test_nothing_is_predicted_far_beyond_what_was_seen(drawn):
    rows = np.clip(drawn[:30], 0.4, 0.5)
    model = learned(rows, lambda row: float(np.exp(20 * row[0])))
    seen = np.log([np.exp(20 * row[0]) for row in rows])
    for row in drawn:
        assert (
            seen.min() - MAX_LOG_EXTRAPOLATION - 1e-6
            <= np.log(model.predict(plan(row), 1.0))
            <= seen.max() + MAX_LOG_EXTRAPOLATION + 1e-6
        )


@pytest.mark.parametrize("count", [1, 2, 30])
@pytest.mark.parametrize("loss", [0.0, 0.7])
def test_equal_losses_and_none_at_all_are_taken(drawn, count, loss):
    model = learned(drawn[:count], lambda row: loss)
    assert model.predict(plan(drawn[50]), 1.0) == pytest.approx(max(loss, MIN_RELATIVE_LOSS), rel=0.01)


def test_one_plan_over_and_over_is_taken(drawn):
    model = learned([drawn[0]] * 20)
    assert model.predict(plan(drawn[0]), 1.0) == pytest.approx(curved(drawn[0]))


def test_a_model_that_was_written_and_read_learns_on_as_if_it_had_not_been(drawn):
    model = learned(drawn[:30])
    copied = pickle.loads(pickle.dumps(model))
    assert copied.predict(plan(drawn[50]), 0.5) == model.predict(plan(drawn[50]), 0.5)
    for one in (model, copied):
        for row in drawn[30:40]:
            one.add(result(row, curved(row)))
        one.fit()
    assert copied.predict(plan(drawn[50]), 0.5) == model.predict(plan(drawn[50]), 0.5)
