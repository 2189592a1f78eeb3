"""Gaussian-process regression for what is rough, mostly additive, and has seen few examples."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MIN_INPUT_STD = 1e-3  # of an input that counts as varying; one that never does moves nothing
JITTER = 1e-6  # keeps the covariance of equal examples invertible
ITERATIONS = 30  # of a fit, which goes on from the last one's
# of each hyper-parameter the logarithm that is likely beforehand and how sure that is (a normal deviation):
# inputs and targets are standard scores
PRIORS: Mapping[str, tuple[float, float]] = {
    "each": (math.log(0.1), 1.5),  # variance of the part of one input
    "length": (0.0, 0.7),  # common to those parts
    "joint": (math.log(0.4), 1.5),  # variance of the part of all inputs
    "lengths": (math.log(3.0), 1.0),  # of that part, for each input
    "noise": (math.log(0.4), 1.5),
}
MAX_PRIOR_STDS = 5.0  # deviations from what is likely, where a search for hyper-parameters is stopped


class GaussianProcess:
    """Foresees a number from several: a part for each input, a part of all of them, and noise.

    Both kinds of part have Matern covariances of smoothness 3/2 (Rasmussen and Williams 2006, eq. 4.17),
    hyper-parameters are the most likely ones given the examples and PRIORS. That the parts add up is what
    lets a few hundred examples teach a function of dozens of inputs (Duvenaud et al., NeurIPS 2011).
    """

    def __init__(self) -> None:
        self._logs: dict[str, Tensor] = {}

    def fit(self, inputs: NDArray[np.float64], targets: NDArray[np.float64], *, tuned_on: int) -> None:
        """Learn from examples; a later fit begins from the hyper-parameters of the last one.

        Args:
            inputs: [examples, D]; the D of the first fit is that of all.
            targets: [examples].
            tuned_on: the last so many examples decide the hyper-parameters.
        """
        x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
        spread = x.std(0, correction=0)
        self._centre, self._scale = x.mean(0), torch.where(spread < MIN_INPUT_STD, 1.0, spread)
        self._mean, self._deviation = y.mean(), max(float(y.std(correction=0)), MIN_INPUT_STD)
        self._examples, scores = (x - self._centre) / self._scale, (y - self._mean) / self._deviation
        if not self._logs:
            sizes = {"each": x.size(1), "lengths": x.size(1)}
            self._logs = {
                name: torch.full((sizes.get(name, 1),), likely, dtype=x.dtype)
                for name, (likely, _) in PRIORS.items()
            }
        self._tune(self._examples[-tuned_on:], scores[-tuned_on:])
        factor = _factor(self._examples, self._logs)
        self._weights = torch.cholesky_solve(scores[:, None], factor)[:, 0]

    def predict(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what is predicted for inputs [n, D]: [n]."""
        x = (torch.from_numpy(inputs) - self._centre) / self._scale
        scores = _covariance(x, self._examples, self._logs) @ self._weights
        return (scores * self._deviation + self._mean).numpy()

    def _tune(self, x: Tensor, y: Tensor) -> None:
        logs = {name: log.clone().requires_grad_() for name, log in self._logs.items()}
        search = torch.optim.LBFGS(list(logs.values()), max_iter=ITERATIONS, line_search_fn="strong_wolfe")

        def unlikeliness() -> Tensor:
            search.zero_grad()
            bounded = _bounded(logs)
            factor = _factor(x, bounded)
            whitened = torch.linalg.solve_triangular(factor, y[:, None], upper=False)
            found = 0.5 * whitened.square().sum() + factor.diagonal().log().sum()
            for name, (likely, sure) in PRIORS.items():
                found = found + 0.5 * ((logs[name] - likely) / sure).square().sum()
            found.backward()
            return found

        search.step(unlikeliness)
        self._logs = {name: log.detach() for name, log in _bounded(logs).items()}


def _bounded(logs: Mapping[str, Tensor]) -> dict[str, Tensor]:
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


def _covariance(one: Tensor, other: Tensor, logs: Mapping[str, Tensor]) -> Tensor:
    """Return the covariance of what is predicted at [n, D] and at [m, D]: [n, m]."""
    apart = one[:, None] - other[None]
    each = _matern((apart / logs["length"].exp()).abs()) @ logs["each"].exp()
    # the root has no slope at 0
    distance = ((apart / logs["lengths"].exp()).square().sum(-1) + 1e-12).sqrt()
    return each + logs["joint"].exp() * _matern(distance)


def _matern(distance: Tensor) -> Tensor:
    scaled = math.sqrt(3.0) * distance
    return (1.0 + scaled) * torch.exp(-scaled)
