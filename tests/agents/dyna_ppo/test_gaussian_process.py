"""Against scikit-learn's regressor, and on functions whose form is known."""

import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern, WhiteKernel

from prunegym.agents.dyna_ppo.gaussian_process import JITTER, MAX_PRIOR_STDS, PRIORS, GaussianProcess


def fitted(inputs, targets, n_tuning=150):
    process = GaussianProcess()
    process.fit(inputs, targets, n_tuning=n_tuning)
    return process


def scores(values):
    return (values - values.mean(0)) / values.std(0)


@pytest.fixture
def drawn():
    return np.random.default_rng(0).uniform(0, 0.9, (80, 3))


def test_with_the_joint_part_alone_it_predicts_what_scikit_learn_does(drawn, monkeypatch):
    logs = {"each": -30.0, "length": 0.0, "joint": np.log(0.7), "lengths": np.log(1.3), "noise": np.log(0.1)}
    monkeypatch.setattr(
        "prunegym.agents.dyna_ppo.gaussian_process.PRIORS", {name: (log, 1.0) for name, log in logs.items()}
    )
    monkeypatch.setattr(GaussianProcess, "_tune", lambda self, x, y: None)
    targets = np.sin(5 * drawn).sum(1)
    kernel = 0.7 * Matern(1.3, nu=1.5) + WhiteKernel(0.1 + JITTER)
    known, new = scores(drawn), (drawn[:20] + 0.05 - drawn.mean(0)) / drawn.std(0)
    oracle = GaussianProcessRegressor(kernel, alpha=0.0, optimizer=None).fit(known, scores(targets))
    expected = oracle.predict(new) * targets.std() + targets.mean()
    assert fitted(drawn, targets).predict(drawn[:20] + 0.05) == pytest.approx(expected, abs=1e-4)


def test_parts_that_add_up_are_learned_from_fewer_examples_than_boxes_have():
    rng = np.random.default_rng(1)
    inputs = rng.uniform(-1, 1, (220, 12))
    targets = np.abs(inputs - 0.3).sum(1)  # a kink in each, nothing joint
    process = fitted(inputs[:120], targets[:120])
    missed = process.predict(inputs[120:]) - targets[120:]
    assert np.var(missed) < 0.1 * np.var(targets[120:])


def test_what_depends_on_all_inputs_at_once_is_learned_too():
    rng = np.random.default_rng(2)
    inputs = rng.uniform(-1, 1, (200, 2))
    targets = inputs[:, 0] * inputs[:, 1]  # no sum of parts predicts any of it
    missed = fitted(inputs[:150], targets[:150]).predict(inputs[150:]) - targets[150:]
    assert np.var(missed) < 0.05 * np.var(targets[150:])


def test_noise_is_distinguished_from_the_function():
    rng = np.random.default_rng(3)
    inputs = rng.uniform(-1, 1, (150, 4))
    true = np.sin(3 * inputs[:, 0])
    process = fitted(inputs, true + 0.5 * rng.standard_normal(150))
    assert np.mean((process.predict(inputs) - true) ** 2) < 0.25 * 0.5**2


def test_hyper_parameters_come_from_the_last_examples(drawn):
    targets = np.where(np.arange(80) < 40, 10 * drawn[:, 0], 10 * drawn[:, 1])
    late = fitted(drawn, targets, n_tuning=40)._logs["each"]
    early = fitted(drawn[::-1].copy(), targets[::-1].copy(), n_tuning=40)._logs["each"]
    assert late[1] > late[0]
    assert early[0] > early[1]


def test_a_second_fit_goes_on_from_the_first(drawn, monkeypatch):
    monkeypatch.setattr("prunegym.agents.dyna_ppo.gaussian_process.N_ITERATIONS", 1)
    targets = np.sin(5 * drawn).sum(1)
    once, often = fitted(drawn, targets), fitted(drawn, targets)
    for _ in range(20):
        often.fit(drawn, targets, n_tuning=150)
    assert not torch.allclose(once._logs["joint"], often._logs["joint"], atol=1e-3)


@pytest.mark.parametrize("targets", [np.zeros(5), np.array([1e9, 0, 0, 0, 0.0])])
@pytest.mark.parametrize("inputs", [np.zeros((5, 2)), np.eye(5, 2)])
def test_examples_that_differ_in_nothing_or_wildly_are_taken(inputs, targets):
    process = fitted(inputs, targets)
    assert np.isfinite(process.predict(inputs)).all()
    for name, (likely, sure) in PRIORS.items():
        assert (process._logs[name] - likely).abs().max() <= MAX_PRIOR_STDS * sure + 1e-9
