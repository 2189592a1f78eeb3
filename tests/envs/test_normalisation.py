"""What agents see: features as standard scores over an episode of uniform pruning."""

from types import SimpleNamespace

import numpy as np
import pytest

from prunegym.envs import Budget, BudgetRange
from prunegym.envs.normalisation import MIN_SCORE_STD, ObservationNormalizer
from prunegym.envs.observation import context_features, observation_names
from prunegym.pruning.techniques import TECHNIQUES
from tests.envs.conftest import make_small_env

FIELDS = observation_names([TECHNIQUES["gates"], TECHNIQUES["channels"]])
CONTEXT = [name for name, same in zip(FIELDS, context_features(FIELDS), strict=True) if same]


def features(**named):
    """Features of several groups, those not named at 0.5."""
    count = len(next(iter(named.values())))
    return np.array(
        [[named.get(name, [0.5] * count)[at] for name in FIELDS] for at in range(count)], dtype=np.float32
    )


def seen(scores, row):
    return SimpleNamespace(**dict(zip(FIELDS, scores.normalize(row).tolist(), strict=True)))


def test_scores_are_deviations_from_the_mean_clipped_at_one():
    usual = features(place=[0.1, 0.3], units=[0.5, 0.5 + MIN_SCORE_STD], kernel=[0.0, 1.0])
    scores = ObservationNormalizer(FIELDS, usual)  # means 0.2, 0.51, 0.5; deviations 0.1, too little, 0.5
    (row,) = features(place=[0.25], units=[0.61], kernel=[0.0])
    found = seen(scores, row)
    assert (found.place, found.kernel) == pytest.approx((0.5, -1.0), abs=1e-6)
    assert found.units == pytest.approx(0.61 - 0.5 - MIN_SCORE_STD / 2, abs=1e-6)
    (row,) = features(place=[0.9], units=[0.5], kernel=[0.5])
    assert seen(scores, row).place == 1.0
    assert scores.normalize(row).dtype == np.float32


@pytest.mark.parametrize("name", CONTEXT)
def test_features_of_the_context_are_only_stretched(name):
    scores = ObservationNormalizer(FIELDS, features(**{name: [0.2, 0.4]}))
    (row,) = features(**{name: [0.75]})
    assert getattr(seen(scores, row), name) == pytest.approx(0.5)


def observed(env):
    """What an episode of uniform pruning observes, but for the last, when there is nothing left to decide."""
    observation, _ = env.reset()
    found, terminated = [], False
    while not terminated:
        found.append(observation)
        observation, _, terminated, _, _ = env.step(np.zeros(2, dtype=np.float32))
    return np.array(found)


@pytest.mark.parametrize("network", ["plain", "projected", "padded"])
def test_uniform_pruning_observes_scores_around_zero(network, monkeypatch):
    env = make_small_env(network, budget={"macs": 0.6})
    env.step(np.array([0.5, -1.0], dtype=np.float32))  # an episode at hand changes nothing
    given = []
    monkeypatch.setattr(
        ObservationNormalizer, "normalize", lambda self, row: given.append((self, row)) or row
    )
    rows = observed(env)
    (scores,) = {id(one): one for one, _ in given}.values()
    varying = [name not in CONTEXT for name in FIELDS]
    assert scores._mean[varying] == pytest.approx(rows.mean(0)[varying], abs=1e-6)
    spread = rows.std(0)
    expected = np.where(spread < MIN_SCORE_STD, 1.0, spread)
    assert scores._deviation[varying] == pytest.approx(expected[varying], abs=1e-5)


def test_within_each_budget_of_a_range_scores_are_its_own(monkeypatch):
    env = make_small_env("projected", budget=BudgetRange(Budget({"macs": 0.4}), Budget({"macs": 0.9})))
    used = {}
    original = ObservationNormalizer.normalize
    monkeypatch.setattr(
        ObservationNormalizer,
        "normalize",
        lambda self, row: (
            used.setdefault(float(row[FIELDS.index("budget_macs")]), set()).add(id(self))
            or original(self, row)
        ),
    )
    for _ in range(30):
        observed(env)
    assert len(used) > 3
    assert all(len(scores) == 1 for scores in used.values())
    assert len(set.union(*used.values())) == len(used)


def test_a_group_means_the_same_in_a_network_that_is_twice_as_wide():
    """Scores do not depend on the network's own scale, which raw features do."""
    usual = features(share_macs=[0.1, 0.2, 0.4], static_ratio_error_50=[0.2, 0.3, 0.7])
    doubled = features(share_macs=[0.2, 0.4, 0.8], static_ratio_error_50=[0.1, 0.15, 0.35])
    for one, other in zip(usual, doubled, strict=True):
        assert ObservationNormalizer(FIELDS, usual).normalize(one) == pytest.approx(
            ObservationNormalizer(FIELDS, doubled).normalize(other), abs=1e-5
        )
