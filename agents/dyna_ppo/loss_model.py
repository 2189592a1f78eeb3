"""A model of what plans lose, learned from those that were evaluated."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from prunegym.agents.dyna_ppo.gaussian_process import GaussianProcess
from prunegym.agents.rollout import EpisodeResult
from prunegym.envs.results import PlainPlan
from prunegym.envs.reward import MIN_REFERENCE_LOSS

MIN_RELATIVE_LOSS = 1e-3  # where the logarithm of a share that may be 0 stops
SLOPE_MEAN, SLOPE_VARIANCE = (
    0.5,
    1.0,
)  # of losses against expected ones, as if seen in examples of this variance
MAX_GP_EXAMPLES = 1000  # evaluations of a network to predict from: the time it takes grows with their cube
N_TUNING_EXAMPLES = (
    150  # the newest, to which hyper-parameters are fitted: those of where the policy is now, and quickly
)
MAX_LOG_EXTRAPOLATION = 1.0  # how far beyond the shares seen one is predicted, in their logarithms


class LossModel:
    """Foresees the loss of a plan, for each network by what was expected of it and a Gaussian process.

    What is predicted is the loss as a share of what uniform pruning loses within the same budget, in its
    logarithm: losses of different budgets differ a thousandfold, and what matters is which plan is the better
    one within its own. A line leads from the share that the environment expected of the plan, without having
    carried it out, to the one that came true; the process says how far from that line a plan lies.
    *Measured*, rank correlation within the next 20 plans, mean over seven searches on ResNet-20: after 10
    evaluations 0.37, with the line 0.61; after 20, 0.62 and 0.76; after 60 and more 0.54 and 0.59.
    Networks are told apart by the names of their groups.
    """

    def __init__(self) -> None:
        self._networks: dict[tuple[str, ...], _NetworkLosses] = {}

    def __len__(self) -> int:
        """How many evaluations it was told of."""
        return sum(len(network.shares) for network in self._networks.values())

    def add(self, result: EpisodeResult) -> None:
        """Take an evaluation up, for the next `fit`; its reward must name "loss", "reference", "expected"."""
        network = self._networks.setdefault(tuple(result.plan), _NetworkLosses())
        share = result.reward["loss"] / max(result.reward["reference"], MIN_REFERENCE_LOSS)
        network.plans.append(_ratios(result.plan))
        network.expected.append(_log(result.reward["expected"]))
        network.shares.append(_log(share))

    def fit(self) -> None:
        """Learn from all evaluations so far."""
        for network in self._networks.values():
            network.fit()

    def predict(self, plan: PlainPlan, expected: float) -> float:
        """Return the share of the reference that a plan may lose; of a network never met, the expected."""
        network = self._networks.get(tuple(plan))
        return network.predict(_ratios(plan), _log(expected)) if network else expected


class _NetworkLosses:
    def __init__(self) -> None:
        self.plans: list[NDArray[np.float64]] = []  # [2 groups] each
        self.expected: list[float] = []  # logarithms
        self.shares: list[float] = []  # logarithms
        self._process = GaussianProcess()

    def fit(self) -> None:
        expected, shares = (np.array(logs[-MAX_GP_EXAMPLES:]) for logs in (self.expected, self.shares))
        around = expected - expected.mean()
        self._slope = (around @ shares + SLOPE_VARIANCE * SLOPE_MEAN) / (around @ around + SLOPE_VARIANCE)
        beside = shares - self._slope * expected
        self._process.fit(np.array(self.plans[-MAX_GP_EXAMPLES:]), beside, tuned_on=N_TUNING_EXAMPLES)
        self._seen = shares.min() - MAX_LOG_EXTRAPOLATION, shares.max() + MAX_LOG_EXTRAPOLATION

    def predict(self, ratios: NDArray[np.float64], expected: float) -> float:
        log = self._process.predict(ratios[None])[0] + self._slope * expected
        return float(np.exp(np.clip(log, *self._seen)))


def _log(share: float) -> float:
    return math.log(max(share, MIN_RELATIVE_LOSS))


def _ratios(plan: PlainPlan) -> NDArray[np.float64]:
    """Return, of each group, the shares of its units that are removed and that do not run: [2 groups]."""
    static = np.array([one["static_ratio"] for one in plan.values()])
    runtime = np.array([one["runtime_ratio"] for one in plan.values()])
    return np.concatenate([static, 1.0 - (1.0 - static) * (1.0 - runtime)])
