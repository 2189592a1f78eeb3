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

UNIFORM_SHARE = 1.0  # what uniform pruning loses: with nothing known, no plan is better than another
LEAST_REFERENCE = 1e-3  # as the environment takes it: below it uniform pruning does no harm
LEAST_SHARE = 1e-3  # where the logarithm of a share that may be 0 stops
NEWEST = 1000  # evaluations of a network to foresee from: the time it takes grows with their cube
TUNED = 100  # the newest, to which lengths are fitted: those of where the policy is now, and quickly
FURTHER = 1.0  # how far beyond the shares seen one is foreseen, in their logarithms
ITERATIONS = 30  # of a fit, which goes on from the last one's


class LossModel:
    """Foresees the loss of a plan by Gaussian processes, one for each network.

    What is foreseen is the loss as a share of what uniform pruning loses within the same budget: losses of
    different budgets differ a thousandfold, and what matters is which plan is the better one within its own.
    The logarithm of the share is linear in a plan's ratios, plus something smooth with a length for each,
    plus noise (Rasmussen and Williams 2006, sections 2.7 and 5.1). Networks are told apart by the names of
    their groups.
    """

    def __init__(self) -> None:
        self._networks: dict[tuple[str, ...], _NetworkLosses] = {}

    def __len__(self) -> int:
        """How many evaluations it was told of."""
        return sum(len(network.shares) for network in self._networks.values())

    def add(self, result: EpisodeResult) -> None:
        """Take an evaluation up, for the next `fit`; its reward's parts must name loss and reference."""
        network = self._networks.setdefault(tuple(result.plan), _NetworkLosses())
        share = result.reward["loss"] / max(result.reward["reference"], LEAST_REFERENCE)
        network.plans.append(_ratios(result.plan))
        network.shares.append(float(np.log(max(share, LEAST_SHARE))))

    def fit(self) -> None:
        """Learn from all evaluations so far."""
        for network in self._networks.values():
            network.fit()

    def foresee(self, plan: Plan) -> float:
        """Return the share of the reference that a plan may lose; of a network never met, all of it."""
        network = self._networks.get(tuple(plan))
        return network.foresee(_ratios(plan)) if network else UNIFORM_SHARE


class _NetworkLosses:
    def __init__(self) -> None:
        self.plans: list[NDArray[np.float64]] = []  # [2 groups] each
        self.shares: list[float] = []  # logarithms
        self._process: GaussianProcessRegressor | None = None

    def fit(self) -> None:
        kernel = self._process.kernel_ if self._process else _kernel(len(self.plans[0]))
        tuned = GaussianProcessRegressor(kernel, optimizer=_a_few_steps, normalize_y=True)
        with warnings.catch_warnings():
            # a length at the end of its range is that of a ratio which does not matter, or never changes
            warnings.simplefilter("ignore", ConvergenceWarning)
            tuned.fit(np.array(self.plans[-TUNED:]), self.shares[-TUNED:])
        self._process = GaussianProcessRegressor(tuned.kernel_, optimizer=None, normalize_y=True)
        self._process.fit(np.array(self.plans[-NEWEST:]), self.shares[-NEWEST:])

    def foresee(self, ratios: NDArray[np.float64]) -> float:
        assert self._process is not None
        foreseen = float(self._process.predict(ratios[None])[0])
        seen = self.shares[-NEWEST:]
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
