"""Pruning a network as an episode: one step per channel group."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from prunegym.envs.action import ActionMode, decode_action, decode_raw_action
from prunegym.envs.allocation import ALLOCATIONS
from prunegym.envs.budget import Budget, BudgetRange, Limits, leading_measure, priced
from prunegym.envs.budget_projection import BudgetProjection
from prunegym.envs.group_summary import group_summary
from prunegym.envs.normalisation import NORMALISER, ObservationNormalizer
from prunegym.envs.objectives import (
    DrawnImagesObjective,
    FunctionObjective,
    Goal,
    ImageObjective,
    Objective,
    first_batches,
)
from prunegym.envs.observation import OBSERVATION_VERSION, LayerObservation, Observer, Progress
from prunegym.envs.results import EpisodeResults, LossPredictor
from prunegym.envs.reward import step_reward
from prunegym.envs.scoring import PlanScorer
from prunegym.envs.uniform_baseline import N_LOO_IMAGES, ExpectedLosses, UniformBaseline, UniformBaselines
from prunegym.pruning.apply import DEFAULT_METHOD, Method
from prunegym.pruning.calibration.statistics import CalibrationInputs, real_images
from prunegym.pruning.cost import Widths, widths_plan
from prunegym.pruning.data import checked
from prunegym.pruning.errors import DataError
from prunegym.pruning.latency import LatencyTable
from prunegym.pruning.metrics import ScoreFunction, accuracy, predictions, scored
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.plan import PruningPlan

Observation = NDArray[np.float32]
Action = NDArray[np.float32]
Batches = Iterable[tuple[Tensor, Tensor]]
PlainPlan = Mapping[str, Mapping[str, float]]  # group -> {"static_ratio", "runtime_ratio"}


class LayerPruningEnv(gym.Env[Observation, Action]):
    """Decide, group by group, how much of a trained network to prune.

    ## Description
    An episode walks the network's prunable channel groups in execution order. Each step sets one group's
    runtime ratio (survivors skipped for each input) and static ratio (units removed for good). While
    deciding, nothing is cut: plans are priced by arithmetic, and the finished plan is carried out once.

    ## Action space
    Box(-1, 1, (2,), float32): `action[0]` runtime, `action[1]` static, centred on the budget. Zero at every
    step is the uniform plan. Any action is valid: decisions are kept where the budget can still be met, so a
    finished plan is never above it, and below it by at most one unit of its last group.

    ## Observation space
    Box(-1, 1, (len(LayerObservation),), float32): the features of `LayerObservation`, normalised by
    `ObservationNormalizer`; of one size and meaning for any network.

    ## Rewards
    0 at every step but the last; there, how closely the compressed network follows the dense one on the
    reward images, or by the score function, in [0, 1], uniform pruning within the same budget at 0.37: see
    `RewardTerms.total`. With `dense_reward` every step is rewarded; the sum over an episode stays the same.

    ## Starting state
    No group is decided. Within one budget the environment draws no random numbers: equal actions give equal
    episodes. Of a range of budgets, each reset draws one.

    ## Episode end
    The last group terminates the episode; it is never truncated. Every step's `info` holds `group`, the name
    of the group that was decided; the last also `episode_result`, plain data: `plan`, `reward` (its parts and
    `total`), `accuracy`, and `macs` and `params` as shares of the dense network.

    ## Arguments
    See `__init__`. By task name: `gym.make("prunegym/LayerPruning-v0", task="digits")`.

    ## Version history
    v0: first version.
    """

    # declared so by gym.Env, whose checker asks for a frame rate even of text
    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012
    networks = 1
    observation_names: tuple[str, ...] = LayerObservation._fields
    observation_version = OBSERVATION_VERSION
    observation_normaliser = NORMALISER

    def __init__(
        self,
        model: nn.Module,
        *,
        calibration: Batches | CalibrationInputs,
        reward: Batches | None = None,
        score: ScoreFunction | None = None,
        budget: Budget | BudgetRange | Mapping[str, float],
        validation: Batches | None = None,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        goal: Goal = "divergence",
        actions: ActionMode = "centred",
        dense_reward: bool = False,
        first_images: int | None = None,
        drawn_images: int | None = None,
        method: Method = DEFAULT_METHOD,
        only: Sequence[str] = (),
        protect: Sequence[str] = (),
        seed: int = 0,
        render_mode: str | None = None,
        latency: LatencyTable | None = None,
    ) -> None:
        """Trace and calibrate the network.

        Args:
            model: the trained network, on the device to work on; it is never changed.
            calibration: batches of (images, labels), or a DataLoader of them, whose labels are not used; or
                what a synthesis made of the weights alone.
            reward: batches of (images, labels) that score a finished plan.
            score: takes their place: a function of a compressed network, higher being better; see
                `FunctionObjective`. It is given a copy, and called again for each distinct plan, once for
                each group at the beginning, and for validation.
            budget: shares of the dense network that may remain; of a range, each episode draws one. Where it
                names latency, no group is gated: what a gate saves, no table knows.
            validation: batches that choose between finished plans; the reward images where there are none.
            limits: the largest static and runtime ratio of a group.
            goal: what the reward on images is made of, see `ImageObjective`.
            actions: "centred" on the budget, or "raw" as in AMC: the ratio itself, under an upper wall only.
            dense_reward: reward each step by the loss expected of its group, see `ExpectedLosses`.
            first_images: score plans on so many first, and only promising ones on all, see `ImageObjective`.
            drawn_images: score each plan on so many of the reward images, drawn for it, and only uniform
                pruning on all, see `DrawnImagesObjective`.
            method: how plans are carried out.
            only: patterns of layers to admit.
            protect: patterns of layers to freeze.
            seed: of the positions sampled for calibration.
            render_mode: "ansi" or None.
            latency: prices a latency budget; the table of the network's device unless given, which is
                measured if need be, see `latency_table`.

        Raises:
            DataError: reward images and a score function are given, or neither, or the images are to be
                chosen in two ways; see also the objectives.
            PruningError: see `PrunableNetwork`, `Budget` and `BudgetProjection`.
        """
        self.render_mode = render_mode
        if not isinstance(calibration, CalibrationInputs):
            calibration = real_images(model, (images for images, _ in checked(calibration, "calibration")))
        self.network = PrunableNetwork(
            model, calibration, method=method, only=only, protect=protect, seed=seed
        )
        self.group_names = tuple(group.name for group in self.network.graph.prunable)
        self._limits = self._given_limits = limits
        self._latency = latency
        self.action_mode: ActionMode = actions
        self._score = score
        if score is None:
            self._score_by_images(reward, validation, self._image_objective(goal, first_images, drawn_images))
        else:
            self._score_by_function(score, reward, first_images or drawn_images)
        self._expected = ExpectedLosses(self.network)
        self._dense_reward = dense_reward
        self.set_budget(budget if isinstance(budget, (Budget, BudgetRange)) else Budget(budget))
        self.action_space = spaces.Box(-1.0, 1.0, shape=(2,), dtype=np.float32)
        self.observation_space = spaces.Box(
            -1.0, 1.0, shape=(len(LayerObservation._fields),), dtype=np.float32
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode: nothing is decided."""
        super().reset(seed=seed)
        if isinstance(self._budget, BudgetRange):
            self._keep_to(self._budget.draw(self.np_random))
        self._begin()
        return self._observe(), {}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Decide the next group; carry the plan out after the last.

        Raises:
            gymnasium.error.ResetNeeded: the episode is over.
        """
        if self._step == len(self.group_names):
            raise gym.error.ResetNeeded("every group is decided; call reset() to begin another episode")
        group = self.network.graph.prunable[self._step]
        self._decide(action, gated=group.ungated is None)
        reward = self._shaped()
        self._step += 1
        info: dict[str, Any] = {"group": group.name}
        if self._step == len(self.group_names):  # all decided: a true end, not a time limit
            result = info["episode_result"] = self._results.result_for(
                self._widths(),
                uniform=self._baseline.uniform,
                expected=self._expected.for_plan(self._executed, self._baseline),
            )
            return self._observe(), reward + result["reward"]["total"] - self._given, True, False, info
        self._even_ratio = self._even_ratio_now()
        return self._observe(), reward, False, False, info

    @property
    def gated(self) -> tuple[bool, ...]:
        """Whether a runtime action has any effect, for each group."""
        takes = self._limits.runtime > 0 and self.action_mode == "centred"
        return tuple(takes and group.ungated is None for group in self.network.graph.prunable)

    def surrogate_env(self, predict: LossPredictor) -> LayerPruningEnv:
        """Return a surrogate on the same network, whose episodes end with what is predicted for a plan.

        Uniform pruning alone is carried out, once within a budget; predicted are shares of what it loses.
        """
        surrogate = copy.copy(self)
        surrogate._np_random = None  # it draws budgets of its own
        surrogate._results = self._results.with_predictions(predict)
        surrogate._begin()
        return surrogate

    def episode_state(self) -> dict[str, Any]:
        """Return the state of the random numbers, plain data: what the next episode depends on."""
        return {"random": self.np_random.bit_generator.state}

    def restore_episode_state(self, state: Mapping[str, Any]) -> None:
        """Have the next episode start from what `episode_state` returned."""
        self.np_random.bit_generator.state = state["random"]

    @property
    def budget(self) -> Budget | BudgetRange:
        """What may remain."""
        return self._budget

    def set_budget(self, budget: Budget | BudgetRange) -> None:
        """Change what may remain, and begin an episode; of a range, every reset draws one.

        Raises:
            ImpossibleBudgetError: no plan within the limits meets the budget.
        """
        leading = leading_measure(budget)
        if leading == "latency" and self.network.latency is None:
            self.network.enable_latency_prices_(self._latency)
        no_gates = replace(self._given_limits, runtime=0.0)
        self._limits = no_gates if leading == "latency" else self._given_limits
        self._keep_to(budget if isinstance(budget, Budget) else budget.tightest)
        self._anchor = self._baseline.uniform
        self._observer = Observer(self.network, leading)
        self._scores: dict[UniformBaseline, ObservationNormalizer] = {}
        self._budget = budget
        self._results.forget_least()
        self._begin()

    def allocation(self, name: str) -> dict[str, dict[str, float]]:
        """Return the plan, within the budget, of a built-in allocation in ALLOCATIONS, as plain data.

        Raises:
            UnknownNameError: there is none of that name.
        """
        widths = ALLOCATIONS[name](self.network, self._projection)
        return widths_plan(self.network.graph, widths).to_dict()

    def evaluate(self, plan: PlainPlan) -> dict[str, Any]:
        """Return the `episode_result` of a plan, never an estimate; it costs one evaluation.

        Raises:
            PlanError: the plan asks for what the network cannot do.
        """
        return self._results.full_result_for(self._results.widths(plan), uniform=self._baseline.uniform)

    def shares(self, plan: PlainPlan) -> dict[str, float]:
        """Return the shares of the dense network that a plan leaves, by each measure that has a price."""
        cost, widths = self.network.cost, self._results.widths(plan)
        return {name: price(cost, widths) / price(cost, cost.dense) for name, price in priced(cost).items()}

    def remember(self, result: Mapping[str, Any]) -> None:
        """Take an `episode_result` as known, from an earlier run of the same task."""
        self._results.remember(result)

    def apply(self, plan: PlainPlan) -> nn.Module:
        """Return a compressed copy of the network; see `apply_plan`."""
        return self.network.apply(PruningPlan.from_dict(plan)).model

    def validate(self, plan: PlainPlan) -> float:
        """Return the accuracy of a plan, carried out, on the validation images; or its score."""
        model = self.apply(plan)
        if self._score is not None:
            return scored(self._score, model)
        return accuracy(*predictions(model, self._validation_batches))

    def group_summary(self) -> list[dict[str, Any]]:
        """Return what is known of each group before any decision, as plain data; see `group_summary`."""
        return group_summary(self.network, self._baseline.loo_gain)

    def render(self) -> str | None:
        """Return the decisions so far as a table of text, in the mode "ansi"."""
        if self.render_mode != "ansi":
            return None
        rows = [
            f"{name:<32} {one.static_ratio:7.1%} {one.runtime_ratio:8.1%}"
            for name, one in self._plan().decisions.items()
        ]
        return "\n".join([f"{'group':<32} {'static':>7} {'runtime':>8}", *rows])

    def _image_objective(
        self, goal: Goal, first_images: int | None, drawn_images: int | None
    ) -> Callable[[Batches], Objective]:
        """Return what makes the objective of reward images."""
        model = self.network.model
        if drawn_images is None:
            return lambda reward: ImageObjective(model, reward, goal=goal, first_images=first_images)
        if first_images is not None or goal != "divergence":
            raise DataError("drawn images go with divergence, and not with first images; choose one")
        return lambda reward: DrawnImagesObjective(
            model, reward, drawn=drawn_images, anchor=self._uniformly_pruned
        )

    def _uniformly_pruned(self) -> nn.Module:
        return self.network.apply(widths_plan(self.network.graph, self._anchor)).model

    def _score_by_images(
        self, reward: Batches | None, validation: Batches | None, objective: Callable[[Batches], Objective]
    ) -> None:
        if reward is None:
            raise DataError("there is nothing to score plans by; give reward images or a score function")
        model, reward = self.network.model, list(checked(reward, "reward"))
        glance = ImageObjective(model, first_batches(reward, N_LOO_IMAGES)[0], goal="divergence")
        self._results = EpisodeResults(self.network, PlanScorer(self.network, objective(reward)))
        self._baselines = UniformBaselines(self.network, PlanScorer(self.network, glance))
        self._validation_batches = reward if validation is None else list(checked(validation, "validation"))

    def _score_by_function(
        self, score: ScoreFunction, reward: Batches | None, some_images: int | None
    ) -> None:
        if reward is not None or some_images is not None:
            raise DataError("a score function takes the place of reward images; leave those out")
        scorer = PlanScorer(self.network, FunctionObjective(score, self.network.model))
        self._results = EpisodeResults(self.network, scorer)
        self._baselines = UniformBaselines(self.network, scorer)

    def _keep_to(self, budget: Budget) -> None:
        """Let episodes keep to one budget, of those to serve."""
        self._projection = BudgetProjection(
            self.network.cost, budget, self._limits, round_to=self.network.method.round_to
        )
        self._baseline = self._baselines.baseline_for(self._projection)

    def _begin(self) -> None:
        self._step = 0
        self._given = 0.0  # by the shaping, in this episode
        self._kept = self._projection.units.copy()
        self._executed = self._projection.units.copy()
        self._even_ratio = self._even_ratio_now()

    def _decide(self, action: Action, *, gated: bool) -> None:
        if self.action_mode == "raw":
            static, runtime = decode_raw_action(action, limits=self._limits)
        else:
            static, runtime = decode_action(
                action, even_ratio=self._even_ratio, limits=self._limits, gated=gated
            )
        self._kept[self._step], self._executed[self._step] = self._projection.project(
            self._step,
            self._kept[: self._step],
            self._executed[: self._step],
            static=static,
            runtime=runtime,
            exhaust=self.action_mode == "centred",
        )

    def _shaped(self) -> float:
        """Return the dense reward for the group just decided, to be taken back at the end."""
        if not self._dense_reward:
            return 0.0
        given = step_reward(self._expected.for_group(self._step, int(self._kept[self._step]), self._baseline))
        self._given += given
        return given

    def _even_ratio_now(self) -> float:
        return self._projection.even_ratio(self._step, self._kept[: self._step], self._executed[: self._step])

    def _observe(self) -> Observation:
        if self._baseline not in self._scores:
            self._scores[self._baseline] = ObservationNormalizer(self._uniform_features())
        features = self._features(self._step, self._widths(), self._even_ratio)
        return self._scores[self._baseline].normalize(features)

    def _features(self, step: int, widths: Widths, even_ratio: float) -> Observation:
        return self._observer.observe(
            Progress(step, widths, even_ratio, self._projection.budget, self._baseline.loo_gain)
        )

    def _uniform_features(self) -> NDArray[np.float32]:
        """Return the features of the groups in an episode of uniform pruning, [groups, F]."""
        uniform, units, found = self._baseline.uniform.kept, self._projection.units, []
        for step in range(len(units)):
            kept = np.concatenate([uniform[:step], units[step:]])
            even_ratio = self._projection.even_ratio(step, kept[:step], kept[:step])
            found.append(self._features(step, Widths(kept, kept), even_ratio))
        return np.array(found)

    def _widths(self) -> Widths:
        return Widths(self._kept, self._executed)

    def _plan(self) -> PruningPlan:
        plan = widths_plan(self.network.graph, self._widths())
        return PruningPlan({name: plan[name] for name in self.group_names[: self._step]})
