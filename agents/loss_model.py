"""A model of what plans lose, learned from those that were evaluated."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, Kernel, WhiteKernel

from agents.interface import Plan
from agents.rollout import EpisodeResult

LEAST_LOSS = 1e-3  # where the logarithm of a loss that may be 0 stops
NEWEST = 400  # evaluations of a network to fit: the time it takes grows with their cube
FURTHER = 1.0  # how far beyond the losses seen one is foreseen, in their logarithms
ITERATIONS = 30  # of a fit, which goes on from the last one's


class LossModel:
    """Foresees the loss of a plan by Gaussian processes, one for each network.

    The logarithm of the loss is linear in a plan's ratios, plus something smooth with a length for each, plus
    noise (Rasmussen and Williams 2006, sections 2.7 and 5.1). Networks are told apart by the names of their
    groups.
    """

    def __init__(self) -> None:
        self._networks: dict[tuple[str, ...], _NetworkLosses] = {}

    def __len__(self) -> int:
        """How many evaluations it was told of."""
        return sum(len(network.losses) for network in self._networks.values())

    def add(self, result: EpisodeResult) -> None:
        """Take an evaluation up, for the next `fit`; its reward must have a part named loss."""
        losses = self._networks.setdefault(tuple(result.plan), _NetworkLosses())
        losses.plans.append(_ratios(result.plan))
        losses.losses.append(float(np.log(max(result.reward["loss"], LEAST_LOSS))))

    def fit(self) -> None:
        """Learn from all evaluations so far."""
        for network in self._networks.values():
            network.fit()

    def foresee(self, plan: Plan) -> float:
        """Return the loss that a plan of a network met before the last `fit` is foreseen to have."""
        return self._networks[tuple(plan)].foresee(_ratios(plan))


class _NetworkLosses:
    def __init__(self) -> None:
        self.plans: list[NDArray[np.float64]] = []  # [2 groups] each
        self.losses: list[float] = []  # logarithms
        self._process: GaussianProcessRegressor | None = None

    def fit(self) -> None:
        plans = np.array(self.plans[-NEWEST:])
        kernel = self._process.kernel_ if self._process else _kernel(plans.shape[1])
        self._process = GaussianProcessRegressor(kernel, optimizer=_a_few_steps, normalize_y=True)
        with warnings.catch_warnings():
            # a length at the end of its range is that of a ratio which does not matter, or never changes
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._process.fit(plans, self.losses[-NEWEST:])

    def foresee(self, ratios: NDArray[np.float64]) -> float:
        assert self._process is not None
        foreseen = float(self._process.predict(ratios[None])[0])
        seen = self.losses[-NEWEST:]
        return float(np.exp(np.clip(foreseen, min(seen) - FURTHER, max(seen) + FURTHER)))


def _ratios(plan: Plan) -> NDArray[np.float64]:
    return np.array([ratio for one in plan.values() for ratio in (one["static_ratio"], one["runtime_ratio"])])


def _kernel(size: int) -> Kernel:
    smooth = ConstantKernel(1.0, (1e-2, 1e2)) * RBF(np.full(size, 0.5), (0.1, 10.0))
    linear = ConstantKernel(1.0, (1e-3, 1e2)) * DotProduct(1.0, "fixed")
    return smooth + linear + WhiteKernel(0.05, (1e-4, 1.0))


def _a_few_steps(
    objective: Callable[..., tuple[float, NDArray[np.float64]]],
    start: NDArray[np.float64],
    bounds: NDArray[np.float64],
) -> tuple[NDArray[np.float64], float]:
    """Return hyper-parameters and the objective there, see the `optimizer` of GaussianProcessRegressor."""
    found = minimize(
        objective, start, method="L-BFGS-B", jac=True, bounds=bounds, options={"maxiter": ITERATIONS}
    )
    return found.x, found.fun
