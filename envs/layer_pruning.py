"""Pruning a network as an episode: one step per channel group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from envs.action import decode_action
from envs.budget import Budget, BudgetKeeper, Limits
from envs.observation import OBSERVATION_VERSION, LayerObservation, Observer, Progress
from envs.reward import Goal, RewardTerms, reward_terms
from pruning.apply import DEFAULT_METHOD, Method
from pruning.calibration import CalibrationInputs, real_images
from pruning.cost import Widths
from pruning.evaluation import accuracy, predictions
from pruning.plan import LayerDecision, PruningPlan
from pruning.prunable import PrunableNetwork

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
    Box(0, 1, (len(LayerObservation),), float32): see `LayerObservation`; of one size for any network.

    ## Rewards
    0 at every step but the last; there, how closely the compressed network follows the dense one on the
    reward images, in [0, 1]: see `RewardTerms.total`.

    ## Starting state
    No group is decided. The environment draws no random numbers: equal actions give equal episodes.

    ## Episode end
    The last group terminates the episode; it is never truncated. Every step's `info` holds `group`, the name
    of the group that was decided; the last also `episode_result`, plain data: `plan`, `reward` (its parts and
    `total`), `accuracy`, and `macs` and `params` as shares of the dense network.

    ## Arguments
    See `__init__`. By task name: `gym.make("LayerPruning-v0", task="digits")`.

    ## Version history
    v0: first version.
    """

    # declared so by gym.Env, whose checker asks for a frame rate even of text
    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012
    observation_names = LayerObservation._fields
    observation_version = OBSERVATION_VERSION

    def __init__(
        self,
        model: nn.Module,
        *,
        calibration: Batches | CalibrationInputs,
        reward: Batches,
        budget: Budget | Mapping[str, float],
        validation: Batches | None = None,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        goal: Goal = "divergence",
        method: Method = DEFAULT_METHOD,
        only: Sequence[str] = (),
        protect: Sequence[str] = (),
        seed: int = 0,
        render_mode: str | None = None,
    ) -> None:
        """Trace and calibrate the network.

        Args:
            model: the trained network, on the device to work on; it is never changed.
            calibration: batches of (images, labels), or a DataLoader of them, whose labels are not used; or
                what a synthesis made of the weights alone.
            reward: batches of (images, labels) that score a finished plan.
            budget: shares of the dense network that may remain.
            validation: batches that choose between finished plans; the reward images where there are none.
            limits: the largest static and runtime ratio of a group.
            goal: what the reward is made of, see `RewardTerms.total`.
            method: how plans are carried out.
            only: patterns of layers to admit.
            protect: patterns of layers to freeze.
            seed: of the positions sampled for calibration.
            render_mode: "ansi" or None.

        Raises:
            PruningError: see `PrunableNetwork`, `Budget` and `BudgetKeeper`.
        """
        self.render_mode = render_mode
        if not isinstance(calibration, CalibrationInputs):
            calibration = real_images(model, (images for images, _ in calibration))
        self.network = PrunableNetwork(
            model, calibration, method=method, only=only, protect=protect, seed=seed
        )
        self.group_names = tuple(group.name for group in self.network.graph.prunable)
        self._limits = limits
        self._goal: Goal = goal
        self._even_ratio = 0.0
        self.set_budget(budget if isinstance(budget, Budget) else Budget(budget))
        self._observer = Observer(self.network)
        # listed: a loader that shuffles would pair the dense network's outputs with other images
        self._reward_batches = list(reward)
        self._validation_batches = self._reward_batches if validation is None else list(validation)
        self._dense_logits, self._labels = predictions(model, self._reward_batches)
        self._terms: dict[bytes, RewardTerms] = {}
        self.action_space = spaces.Box(-1.0, 1.0, shape=(2,), dtype=np.float32)
        self.observation_space = spaces.Box(
            0.0, 1.0, shape=(len(LayerObservation._fields),), dtype=np.float32
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode: nothing is decided."""
        super().reset(seed=seed)
        self._begin()
        return self._observe(), {}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Decide the next group; carry the plan out after the last.

        Raises:
            gymnasium.error.ResetNeeded: the episode is over.
        """
        if self._step == len(self.group_names):
            raise gym.error.ResetNeeded("every group is decided; call reset() to begin another episode")
        step, group = self._step, self.network.graph.prunable[self._step]
        static, runtime = decode_action(
            action, even_ratio=self._even_ratio, limits=self._limits, gated=group.ungated is None
        )
        decided = self._kept[:step], self._executed[:step]
        self._kept[step], self._executed[step] = self._keeper.nearest(
            step, *decided, static=static, runtime=runtime
        )
        self._step += 1
        info: dict[str, Any] = {"group": group.name}
        if self._step == len(self.group_names):  # all decided: a true end, not a time limit
            result = info["episode_result"] = self._result()
            return self._observe(), result["reward"]["total"], True, False, info
        self._even_ratio = self._even_ratio_now()
        return self._observe(), 0.0, False, False, info

    def set_budget(self, budget: Budget) -> None:
        """Change what may remain, and begin an episode.

        Raises:
            ImpossibleBudgetError: no plan within the limits meets the budget.
        """
        keeper = BudgetKeeper(self.network.cost, budget, self._limits, round_to=self.network.method.round_to)
        self._budget, self._keeper = budget, keeper
        self._begin()

    def carry_out(self, plan: PlainPlan) -> nn.Module:
        """Return a compressed copy of the network; see `apply_plan`."""
        return self.network.compress(PruningPlan.from_dict(plan)).model

    def validate(self, plan: PlainPlan) -> float:
        """Return the accuracy of a plan, carried out, on the validation images."""
        return accuracy(*predictions(self.carry_out(plan), self._validation_batches))

    def render(self) -> str | None:
        """Return the decisions so far as a table of text, in the mode "ansi"."""
        if self.render_mode != "ansi":
            return None
        decisions = self._plan().decisions.items()
        lines = [f"{'group':<32} {'static':>7} {'runtime':>8}"]
        return "\n".join(
            [
                *lines,
                *(f"{name:<32} {one.static_ratio:7.1%} {one.runtime_ratio:8.1%}" for name, one in decisions),
            ]
        )

    def _begin(self) -> None:
        self._step = 0
        self._kept = self._keeper.units.copy()
        self._executed = self._keeper.units.copy()
        self._even_ratio = self._even_ratio_now()

    def _even_ratio_now(self) -> float:
        return self._keeper.even_ratio(self._step, self._kept[: self._step], self._executed[: self._step])

    def _observe(self) -> Observation:
        return self._observer.observe(Progress(self._step, self._widths(), self._even_ratio, self._budget))

    def _widths(self) -> Widths:
        return Widths(self._kept, self._executed)

    def _plan(self) -> PruningPlan:
        counts = zip(self.group_names, self._keeper.units, self._kept, self._executed, strict=True)
        return PruningPlan(
            {
                name: LayerDecision(float(1 - kept / units), float(1 - executed / kept))
                for name, units, kept, executed in list(counts)[: self._step]
            }
        )

    def _result(self) -> dict[str, Any]:
        plan, cost, widths = self._plan(), self.network.cost, self._widths()
        key = self._kept.tobytes() + self._executed.tobytes()
        if key not in self._terms:
            self._terms[key] = self._score(plan)
        return {
            "plan": plan.to_dict(),
            "reward": self._terms[key].to_dict(),
            "accuracy": self._terms[key].accuracy,
            "macs": cost.macs(widths) / cost.macs(cost.dense),
            "params": cost.params(widths) / cost.params(cost.dense),
        }

    def _score(self, plan: PruningPlan) -> RewardTerms:
        logits, _ = predictions(self.network.compress(plan).model, self._reward_batches)
        return reward_terms(logits, self._dense_logits, self._labels, goal=self._goal)
