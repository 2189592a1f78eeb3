"""What is asked of a pruning run: a network, how its plans are scored, and what may remain of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from prunegym.envs.allocation import ALLOCATIONS
from prunegym.envs.budget import Budget, BudgetRange, Limits, measures_of
from prunegym.envs.budget_projection import BudgetProjection
from prunegym.envs.description import site_summary
from prunegym.envs.normalisation import ObservationNormalizer
from prunegym.envs.objectives import Goal
from prunegym.envs.observation import Observer, Progress
from prunegym.envs.results import EpisodeResults, LossPredictor, PlainPlan
from prunegym.envs.scoring import FunctionScoring, ImageScoring, Scoring
from prunegym.envs.uniform_baseline import ExpectedLosses, UniformBaseline, UniformBaselines
from prunegym.pruning.calibration.statistics import CalibrationInputs, real_images
from prunegym.pruning.data import checked
from prunegym.pruning.errors import DataError
from prunegym.pruning.latency import LatencyTable
from prunegym.pruning.measures import MEASURES
from prunegym.pruning.method import DEFAULT_METHOD, Method
from prunegym.pruning.metrics import ScoreFunction
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.plan import Amount, CompressionPlan
from prunegym.pruning.technique import Levels

Batches: TypeAlias = Iterable[tuple[Tensor, Tensor]]  # images [N, C, H, W] and labels [N]
DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class ProblemConfig:
    """What is rarely given when a problem is posed."""

    method: Method = DEFAULT_METHOD  # how plans are applied
    techniques: tuple[str, ...] | None = None  # the kinds of compression, in the place of those of `method`
    limits: Limits = DEFAULT_LIMITS  # how far techniques may go at a site
    only: tuple[str, ...] = ()  # patterns of layers to admit, see `restrict`
    protect: tuple[str, ...] = ()  # patterns of layers to freeze, see `restrict`
    goal: Goal = "divergence"  # what the loss on reward images is, see `ImageObjective`
    first_images: int | None = None  # score plans on so many images first, see `ImageObjective`
    drawn_images: int | None = None  # score each plan on so many images, see `DrawnImagesObjective`
    latency: LatencyTable | None = None  # prices a latency budget; measured on this device unless given
    seed: int = 0  # of the positions sampled for calibration


class EpisodeContext:
    """What holds while one budget does: the projection onto it, its uniform baseline, and the observations.

    Args:
        network: the network that is pruned.
        projection: keeps decisions within the budget.
        baseline: the uniform plan within the budget.
        observer: computes the features of a step.
    """

    def __init__(
        self,
        network: PrunableNetwork,
        projection: BudgetProjection,
        baseline: UniformBaseline,
        observer: Observer,
    ) -> None:
        self.projection = projection
        self.baseline = baseline
        self._observer = observer
        self._network = network

    @cached_property
    def _expected(self) -> ExpectedLosses:
        return ExpectedLosses(self._network, self.baseline)

    def observe(self, step: int, levels: Levels, even: Mapping[str, Amount]) -> NDArray[np.float32]:
        """Return the normalised features, float32 [F] in [-1, 1], of the site at `step`.

        Args:
            step: the number of sites decided.
            levels: levels of all sites; those not decided are neutral.
            even: technique -> amount in the even plan of the sites from here on.
        """
        return self._normalizer.normalize(self._features(step, levels, even))

    def expected_site_loss(self, site: int, levels: Levels) -> float:
        """Return the loss expected of the decision at a site, as a share of the even plan's."""
        return self._expected.for_site(site, levels)

    def expected_plan_loss(self, levels: Levels) -> float:
        """Return the loss expected of a plan, as a share of the even plan's loss."""
        return self._expected.for_plan(levels)

    def _features(self, step: int, levels: Levels, even: Mapping[str, Amount]) -> NDArray[np.float32]:
        return self._observer.observe(Progress(step, levels, even, self.baseline.loo_gain))

    @cached_property
    def _normalizer(self) -> ObservationNormalizer:
        """The normaliser by the features of an episode of uniform pruning, [sites, F]."""
        uniform, neutral = self.baseline.uniform, self.projection.space.neutral
        features = []
        for step in range(len(self.projection.space.sites)):
            levels = {name: np.concatenate([uniform[name][:step], neutral[name][step:]]) for name in uniform}
            features.append(self._features(step, levels, self.projection.even(step, levels)))
        return ObservationNormalizer(self._observer.names, np.array(features))


@dataclass(frozen=True)
class PruningProblem:
    """A network, how its finished plans are scored, and the budget or budgets to serve.

    Whatever outlives an episode is here: the traced and calibrated network, the scores of all plans evaluated
    so far, the uniform baselines. `LayerPruningEnv` is the Markov decision process over it. Only its caches
    change; `with_budget` and `with_predictions` return other problems that share what they can. Make one with
    `from_model`.
    """

    network: PrunableNetwork
    config: ProblemConfig
    scoring: Scoring
    baselines: UniformBaselines
    budget: Budget | BudgetRange
    limits: Limits  # in force: within a latency budget no group is gated, see `Measure.unpriced`
    results: EpisodeResults
    _contexts: dict[tuple[tuple[str, float], ...], EpisodeContext] = field(default_factory=dict, repr=False)

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        *,
        calibration: Batches | CalibrationInputs,
        budget: Budget | BudgetRange | Mapping[str, float],
        reward: Batches | None = None,
        score: ScoreFunction | None = None,
        validation: Batches | None = None,
        config: ProblemConfig = ProblemConfig(),
    ) -> PruningProblem:
        """Trace and calibrate a network, and measure the dense one by what plans are to be scored by.

        Args:
            model: the trained network, on the device to work on; it is never changed.
            calibration: batches of (images, labels), or a DataLoader of them, whose labels are not used; or
                what a synthesis made of the weights alone.
            budget: shares of the dense network that may remain; of a range, each episode draws one. Where it
                names latency, no group is gated.
            reward: batches of (images, labels) that score a finished plan.
            score: takes their place: a function of a compressed network, higher is better. It is given a
                copy, and called for each distinct plan, once for each group at the beginning, and for
                validation; see `FunctionObjective`.
            validation: batches that choose between finished plans; the reward images where there are none.
            config: what is rarely given.

        Raises:
            DataError: reward images and a score function are given, or neither, or the images are to be
                chosen in two ways; see also the objectives.
            PruningError: see `PrunableNetwork`, `Budget` and `BudgetProjection`.
        """
        if not isinstance(calibration, CalibrationInputs):
            calibration = real_images(model, (images for images, _ in checked(calibration, "calibration")))
        network = PrunableNetwork(
            model,
            calibration,
            method=replace(config.method, techniques=config.techniques or config.method.techniques),
            only=config.only,
            protect=config.protect,
            seed=config.seed,
        )
        scoring: Scoring
        if score is not None:
            if reward is not None or config.first_images is not None or config.drawn_images is not None:
                raise DataError("a score function takes the place of reward images; leave those out")
            scoring = FunctionScoring(network, score)
        elif reward is None:
            raise DataError("there is nothing to score plans by; give reward images or a score function")
        else:
            scoring = ImageScoring(
                network,
                reward,
                validation,
                goal=config.goal,
                first_images=config.first_images,
                drawn_images=config.drawn_images,
            )
        baselines = UniformBaselines(network, scoring.loo_scorer)
        budget = budget if isinstance(budget, (Budget, BudgetRange)) else Budget(budget)
        return _posed(network, config, scoring, baselines, budget)

    @property
    def site_names(self) -> tuple[str, ...]:
        """The names of the sites at which something can be decided: one step of an episode each."""
        return tuple(site.name for site in self.network.space.sites)

    @property
    def tightest_budget(self) -> Budget:
        """The budget, or the tightest one of a range."""
        return self.budget if isinstance(self.budget, Budget) else self.budget.tightest

    def with_budget(self, budget: Budget | BudgetRange) -> PruningProblem:
        """Return the problem of the same network within another budget, with what is known of its plans.

        Raises:
            ImpossibleBudgetError: no plan within the limits meets the budget.
        """
        return _posed(self.network, self.config, self.scoring, self.baselines, budget)

    def with_predictions(self, predict: LossPredictor) -> PruningProblem:
        """Return the problem with predicted results: only the uniform plan of each budget is applied."""
        return replace(self, results=self.results.with_predictions(predict))

    def context(self, budget: Budget) -> EpisodeContext:
        """Return what holds while a budget does, the same object each time.

        Raises:
            ImpossibleBudgetError: no plan within the limits meets the budget.
        """
        key = tuple(sorted(budget.shares.items()))
        if key not in self._contexts:
            projection = _projection(self.network, budget, self.limits)
            baseline = self.baselines.baseline_for(projection)
            observer = Observer(self.network, budget)
            self._contexts[key] = EpisodeContext(self.network, projection, baseline, observer)
        return self._contexts[key]

    def allocation(self, name: str) -> dict[str, dict[str, float]]:
        """Return the plan, within the budget, of a built-in allocation in ALLOCATIONS, as plain data.

        Raises:
            UnknownNameError: there is none of that name.
        """
        projection = self.context(self.tightest_budget).projection
        return self.network.space.plan(ALLOCATIONS[name](self.network, projection)).to_dict()

    def evaluate(self, plan: PlainPlan) -> dict[str, Any]:
        """Return the `episode_result` of a plan, never an estimate; it costs one evaluation.

        Of a range of budgets, the reward refers to the uniform plan of the tightest.

        Raises:
            PlanError: the plan asks for what the network cannot do.
        """
        uniform = self.context(self.tightest_budget).baseline.uniform
        return self.results.full_result_for(self.results.levels(plan), uniform=uniform)

    def shares(self, plan: PlainPlan) -> dict[str, float]:
        """Return the shares of the dense network that a plan leaves, by each measure that has a price."""
        return self.network.cost.shares(self.results.levels(plan))

    def apply(self, plan: PlainPlan) -> nn.Module:
        """Return a compressed copy of the network; see `apply_plan`."""
        return self.network.apply(CompressionPlan(plan)).model

    def validate(self, plan: PlainPlan) -> float:
        """Return the accuracy of the compressed network on the validation images; or its score."""
        return self.scoring.validate(self.apply(plan))

    def site_summary(self) -> list[dict[str, Any]]:
        """Return what is known of each site before any decision, as plain data; see `site_summary`."""
        return site_summary(self.network, self.context(self.tightest_budget).baseline.loo_gain)


def _posed(
    network: PrunableNetwork,
    config: ProblemConfig,
    scoring: Scoring,
    baselines: UniformBaselines,
    budget: Budget | BudgetRange,
) -> PruningProblem:
    """Return the problem of a network within a budget."""
    measures = [MEASURES[name] for name in measures_of(budget)]
    if any(measure.needs_table for measure in measures) and network.latency is None:
        network.enable_latency_prices_(config.latency)
    unpriced = {name for measure in measures for name in measure.unpriced}
    limits = config.limits.without(unpriced)
    tightest = budget if isinstance(budget, Budget) else budget.tightest
    anchor = baselines.baseline_for(_projection(network, tightest, limits)).uniform
    results = EpisodeResults(network, scoring.plan_scorer(anchor))
    return PruningProblem(network, config, scoring, baselines, budget, limits, results)


def _projection(network: PrunableNetwork, budget: Budget, limits: Limits) -> BudgetProjection:
    return BudgetProjection(network.cost, budget, limits)
