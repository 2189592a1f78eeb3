"""Gaussian-process regression for rough, mostly additive functions and few examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MIN_STD = 1e-3  # of an input or of the targets; what varies less is not scaled up
JITTER = 1e-6  # added to the noise variance: keeps the covariance of equal examples invertible
N_ITERATIONS = 30  # of L-BFGS in one fit, which starts from the hyper-parameters of the last fit
# prior of the logarithm of each hyper-parameter: (mean, standard deviation) of a normal distribution, for
# inputs and targets that are standard scores
PRIORS: Mapping[str, tuple[float, float]] = {
    "each": (math.log(0.1), 1.5),  # variance of each input's own term
    "length": (0.0, 0.7),  # length scale of those terms, common to all
    "joint": (math.log(0.4), 1.5),  # variance of the joint term of all inputs
    "lengths": (math.log(3.0), 1.0),  # length scales of the joint term, one for each input
    "noise": (math.log(0.4), 1.5),  # variance of the noise
}
MAX_PRIOR_STDS = 5.0  # hyper-parameters are clamped to so many standard deviations from the prior's mean


class GaussianProcess:
    """Predicts a number from D inputs as the sum of a term for each input, a joint term, and noise.

    Both kinds of term have Matern covariances of smoothness 3/2 (Rasmussen and Williams 2006, eq. 4.17).
    Hyper-parameters maximise the posterior given the examples and PRIORS. Additive terms make a few hundred
    examples enough to learn a function of dozens of inputs (Duvenaud et al., NeurIPS 2011).

    Args:
        hyperparameters: those that the first fit begins with, as `hyperparameters` returned them.
    """

    def __init__(self, hyperparameters: Mapping[str, Sequence[float]] = {}) -> None:
        self._logs = {name: torch.tensor(logs, dtype=torch.float64) for name, logs in hyperparameters.items()}

    @property
    def hyperparameters(self) -> dict[str, list[float]]:
        """Logarithms of the hyper-parameters of the last fit; none before it."""
        return {name: logs.tolist() for name, logs in self._logs.items()}

    def fit(self, inputs: NDArray[np.float64], targets: NDArray[np.float64], *, n_tuning: int) -> None:
        """Fit to examples, beginning with the hyper-parameters of the last fit.

        Args:
            inputs: [examples, D]; D must be the same in all fits.
            targets: [examples].
            n_tuning: number of examples, the last ones, to which hyper-parameters are fitted.
        """
        x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
        input_std = x.std(0, correction=0)
        self._input_mean, self._input_scale = x.mean(0), torch.where(input_std < MIN_STD, 1.0, input_std)
        self._target_mean, self._target_scale = y.mean(), max(float(y.std(correction=0)), MIN_STD)
        self._examples = (x - self._input_mean) / self._input_scale
        scores = (y - self._target_mean) / self._target_scale
        if not self._logs:
            sizes = {"each": x.size(1), "lengths": x.size(1)}
            self._logs = {
                name: torch.full((sizes.get(name, 1),), mean, dtype=x.dtype)
                for name, (mean, _) in PRIORS.items()
            }
        self._tune(self._examples[-n_tuning:], scores[-n_tuning:])
        factor = _factor(self._examples, self._logs)
        self._weights = torch.cholesky_solve(scores[:, None], factor)[:, 0]

    def predict(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the predicted targets, [n], of inputs, [n, D]."""
        x = (torch.from_numpy(inputs) - self._input_mean) / self._input_scale
        scores = _covariance(x, self._examples, self._logs) @ self._weights
        return (scores * self._target_scale + self._target_mean).numpy()

    def _tune(self, x: Tensor, y: Tensor) -> None:
        """Move the hyper-parameters to the maximum of their posterior given x, [n, D], and y, [n]."""
        logs = {name: log.clone().requires_grad_() for name, log in self._logs.items()}
        optimizer = torch.optim.LBFGS(
            list(logs.values()), max_iter=N_ITERATIONS, line_search_fn="strong_wolfe"
        )

        def negative_log_posterior() -> Tensor:
            optimizer.zero_grad()
            bounded = _bounded(logs)
            factor = _factor(x, bounded)
            whitened = torch.linalg.solve_triangular(factor, y[:, None], upper=False)
            value = 0.5 * whitened.square().sum() + factor.diagonal().log().sum()
            for name, (mean, std) in PRIORS.items():
                value = value + 0.5 * ((logs[name] - mean) / std).square().sum()
            value.backward()
            return value

        optimizer.step(negative_log_posterior)
        self._logs = {name: log.detach() for name, log in _bounded(logs).items()}


def _bounded(logs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the logarithms of hyper-parameters, clamped to MAX_PRIOR_STDS from their priors' means."""
    return {
        name: log.clamp(
            PRIORS[name][0] - MAX_PRIOR_STDS * PRIORS[name][1],
            PRIORS[name][0] + MAX_PRIOR_STDS * PRIORS[name][1],
        )
        for name, log in logs.items()
    }


def _factor(x: Tensor, logs: Mapping[str, Tensor]) -> Tensor:
    """Return the lower Cholesky factor of the covariance of noisy examples, [n, n]."""
    noise = (logs["noise"].exp() + JITTER) * torch.eye(len(x), dtype=x.dtype)
    return torch.linalg.cholesky(_covariance(x, x, logs) + noise)


def _covariance(first: Tensor, second: Tensor, logs: Mapping[str, Tensor]) -> Tensor:
    """Return the covariance, [n, m], of the noiseless targets at inputs [n, D] and [m, D]."""
    difference = first[:, None] - second[None]
    each = _matern((difference / logs["length"].exp()).abs()) @ logs["each"].exp()
    # the small number keeps the gradient of the root finite at distance 0
    distance = ((difference / logs["lengths"].exp()).square().sum(-1) + 1e-12).sqrt()
    return each + logs["joint"].exp() * _matern(distance)


def _matern(distance: Tensor) -> Tensor:
    """Return the Matern covariance of smoothness 3/2 at distances in units of the length scale."""
    scaled = math.sqrt(3.0) * distance
    return (1.0 + scaled) * torch.exp(-scaled)
