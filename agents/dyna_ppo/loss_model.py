"""A model that predicts the loss of a plan from the plans evaluated so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunegym.agents.dyna_ppo.gaussian_process import GaussianProcess
from prunegym.agents.rollout import EpisodeResult
from prunegym.envs.results import PlainPlan
from prunegym.envs.reward import MIN_REFERENCE_LOSS
from prunegym.pruning.techniques import TECHNIQUES, techniques_of

MIN_RELATIVE_LOSS = 1e-3  # lower bound, as a loss may be 0 and its logarithm is taken
SLOPE_MEAN = 0.5  # prior mean of the slope of log losses against expected ones
SLOPE_PRIOR_WEIGHT = 1.0  # of that mean, as if it had been seen in examples with this sum of squares
MAX_GP_EXAMPLES = 1000  # of a network, the newest: the time of a fit grows with their cube
N_TUNING_EXAMPLES = 150  # the newest, to which hyper-parameters are fitted: plans like the policy's today
MAX_LOG_EXTRAPOLATION = 1.0  # predictions stay so near to the range of losses seen, in natural logarithms


class LossModel:
    """Predicts the loss of a plan from the expected loss and a Gaussian process, one for each network.

    The target is the logarithm of the relative loss, that is of the loss divided by that of uniform pruning
    within the same budget: losses of different budgets differ a thousandfold, and what matters is which plan
    is better within its own budget. The prediction is the sum of a linear function of the logarithm of the
    expected relative loss, which the environment gives without applying the plan, and of a Gaussian process
    over the plans, which learns the residuals (measured: see docs/decisions.md, D60).
    Networks are distinguished by the names of their sites.
    """

    def __init__(self) -> None:
        self._networks: dict[tuple[str, ...], _NetworkLosses] = {}

    def __len__(self) -> int:
        """Number of evaluations added."""
        return sum(len(network.losses) for network in self._networks.values())

    def add(self, result: EpisodeResult) -> None:
        """Add an evaluation for the next `fit`; its reward must have "loss", "reference" and "expected"."""
        network = self._networks.setdefault(tuple(result.plan), _NetworkLosses())
        relative_loss = result.reward["loss"] / max(result.reward["reference"], MIN_REFERENCE_LOSS)
        network.plans.append(_coordinates(result.plan))
        network.expected.append(_log(result.reward["expected"]))
        network.losses.append(_log(relative_loss))

    def fit(self) -> None:
        """Fit to all evaluations so far."""
        for network in self._networks.values():
            network.fit()

    def to_list(self) -> list[dict[str, Any]]:
        """Return all evaluations, and what the next fit starts from, as plain data: one entry a network."""
        return [{"sites": list(sites), **one.to_dict()} for sites, one in self._networks.items()]

    def restore_(self, data: Sequence[Mapping[str, Any]]) -> None:
        """Restore what `to_list` returned; predictions need a `fit` first."""
        self._networks = {tuple(entry["sites"]): _NetworkLosses.from_dict(entry) for entry in data}

    def predict(self, plan: PlainPlan, expected: float) -> float:
        """Return the predicted relative loss of a plan; for a network without evaluations the expected one.

        Args:
            plan: the plan, as plain data.
            expected: its expected relative loss.
        """
        network = self._networks.get(tuple(plan))
        return network.predict(_coordinates(plan), _log(expected)) if network else expected


class _NetworkLosses:
    """The evaluations of one network and the model fitted to them."""

    def __init__(self) -> None:
        self.plans: list[NDArray[np.float64]] = []  # [coordinates] each
        self.expected: list[float] = []  # logarithms of expected relative losses
        self.losses: list[float] = []  # logarithms of relative losses
        self._process = GaussianProcess()

    def to_dict(self) -> dict[str, Any]:
        plans = [plan.tolist() for plan in self.plans]
        process = self._process.hyperparameters
        return {"plans": plans, "expected": self.expected, "losses": self.losses, "process": process}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> _NetworkLosses:
        losses = cls()
        losses.plans = [np.array(plan, dtype=np.float64) for plan in data["plans"]]
        losses.expected, losses.losses = (
            [float(log) for log in data[name]] for name in ("expected", "losses")
        )
        losses._process = GaussianProcess(data["process"])
        return losses

    def fit(self) -> None:
        expected, losses = (np.array(logs[-MAX_GP_EXAMPLES:]) for logs in (self.expected, self.losses))
        centred = expected - expected.mean()
        self._slope = (centred @ losses + SLOPE_PRIOR_WEIGHT * SLOPE_MEAN) / (
            centred @ centred + SLOPE_PRIOR_WEIGHT
        )
        residuals = losses - self._slope * expected
        self._process.fit(np.array(self.plans[-MAX_GP_EXAMPLES:]), residuals, n_tuning=N_TUNING_EXAMPLES)
        self._bounds = losses.min() - MAX_LOG_EXTRAPOLATION, losses.max() + MAX_LOG_EXTRAPOLATION

    def predict(self, plan: NDArray[np.float64], expected: float) -> float:
        log = self._process.predict(plan[None])[0] + self._slope * expected
        return float(np.exp(np.clip(log, *self._bounds)))


def _log(relative_loss: float) -> float:
    return math.log(max(relative_loss, MIN_RELATIVE_LOSS))


def _coordinates(plan: PlainPlan) -> NDArray[np.float64]:
    """Return the coordinates of each technique's decisions: by default removed shares, then those not run."""
    kinds = [TECHNIQUES[name] for name in reversed(techniques_of(plan))]
    return np.array([kind.coordinate(decision) for kind in kinds for decision in plan.values()])
