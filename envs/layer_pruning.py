"""Pruning a network as an episode: one step per channel group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from prunegym.envs.action import ActionMode, decode_action, decode_raw_action
from prunegym.envs.budget import Budget, BudgetRange
from prunegym.envs.normalisation import NORMALISER
from prunegym.envs.observation import OBSERVATION_VERSION, LayerObservation
from prunegym.envs.problem import EpisodeContext, PruningProblem
from prunegym.envs.results import LossPredictor
from prunegym.envs.reward import step_reward
from prunegym.pruning.cost import Widths, widths_plan

Observation: TypeAlias = NDArray[np.float32]  # [F], each feature in [-1, 1]
Action: TypeAlias = NDArray[np.float32]  # [2], runtime and static, each in [-1, 1]; zero is the uniform plan


class LayerPruningEnv(gym.Env[Observation, Action]):
    """Decide, group by group, how much of a trained network to prune.

    ## Description
    An episode walks the network's prunable channel groups in execution order. Each step sets one group's
    runtime ratio (survivors skipped for each input) and static ratio (units removed for good). While
    deciding, nothing is cut: plans are priced by arithmetic, and the finished plan is applied once.

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
    See `__init__`. By name: `gym.make("prunegym/LayerPruning-v0", task="digits")`, or with a model and its
    images in the place of `task`, see `make_env`.

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
        problem: PruningProblem,
        *,
        actions: ActionMode = "centred",
        dense_reward: bool = False,
        render_mode: str | None = None,
    ) -> None:
        """Decide about a problem.

        Args:
            problem: what is asked.
            actions: "centred" on the budget, or "raw" as in AMC: the ratio itself, under an upper wall only.
            dense_reward: reward each step by the loss expected of its group, see `ExpectedLosses`.
            render_mode: "ansi" or None.
        """
        self.problem = problem
        self.group_names = problem.group_names  # in the order of the steps
        self.action_mode: ActionMode = actions
        self.render_mode = render_mode
        self._dense_reward = dense_reward
        self.action_space = spaces.Box(-1.0, 1.0, shape=(2,), dtype=np.float32)
        self.observation_space = spaces.Box(
            -1.0, 1.0, shape=(len(LayerObservation._fields),), dtype=np.float32
        )
        self._begin(problem.context(problem.tightest_budget))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode: nothing is decided."""
        super().reset(seed=seed)
        budget = self.problem.budget
        if isinstance(budget, BudgetRange):
            budget = budget.draw(self.np_random)
        self._begin(self.problem.context(budget))
        return self._observe(), {}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Decide the next group; apply the plan after the last.

        Raises:
            gymnasium.error.ResetNeeded: the episode is over.
        """
        if self._step == len(self.group_names):
            raise gym.error.ResetNeeded("every group is decided; call reset() to begin another episode")
        self._decide(action)
        reward = self._shaped_reward()
        info: dict[str, Any] = {"group": self.group_names[self._step]}
        self._step += 1
        if self._step == len(self.group_names):  # all decided: a true end, not a time limit
            result = info["episode_result"] = self.problem.results.result_for(
                Widths(self._kept, self._executed),
                uniform=self._context.baseline.uniform,
                expected=self._context.expected_plan_loss(self._executed),
            )
            return self._observe(), reward + result["reward"]["total"] - self._shaping, True, False, info
        self._even_ratio = self._even_ratio_now()
        return self._observe(), reward, False, False, info

    @property
    def gated(self) -> tuple[bool, ...]:
        """Whether a runtime action has any effect, for each group."""
        allowed = self.problem.limits.runtime > 0 and self.action_mode == "centred"
        return tuple(allowed and group.ungated is None for group in self.problem.network.graph.prunable)

    def surrogate_env(self, predict: LossPredictor) -> LayerPruningEnv:
        """Return an environment of the same problem whose episodes end with predicted losses.

        Only the uniform plan is applied, once within a budget.

        Args:
            predict: (plan, expected relative loss) -> predicted relative loss.
        """
        return LayerPruningEnv(
            self.problem.with_predictions(predict),
            actions=self.action_mode,
            dense_reward=self._dense_reward,
        )

    def set_budget(self, budget: Budget | BudgetRange) -> None:
        """Change what may remain, and begin an episode; see `PruningProblem.with_budget`."""
        self.problem = self.problem.with_budget(budget)
        self._begin(self.problem.context(self.problem.tightest_budget))

    def episode_state(self) -> dict[str, Any]:
        """Return the state of the random numbers, plain data: what the next episode depends on."""
        return {"random": self.np_random.bit_generator.state}

    def restore_episode_state(self, state: Mapping[str, Any]) -> None:
        """Let the next episode start from what `episode_state` returned."""
        self.np_random.bit_generator.state = state["random"]

    def remember(self, result: Mapping[str, Any]) -> None:
        """Take an `episode_result` as known, from an earlier run of the same problem."""
        self.problem.results.remember(result)

    def render(self) -> str | None:
        """Return the decisions so far as a table of text, in the mode "ansi"."""
        if self.render_mode != "ansi":
            return None
        plan = widths_plan(self.problem.network.graph, Widths(self._kept, self._executed))
        rows = [
            f"{name:<32} {plan[name].static_ratio:7.1%} {plan[name].runtime_ratio:8.1%}"
            for name in self.group_names[: self._step]
        ]
        return "\n".join([f"{'group':<32} {'static':>7} {'runtime':>8}", *rows])

    def _begin(self, context: EpisodeContext) -> None:
        self._context = context
        self._step = 0
        self._shaping = 0.0  # dense rewards given in this episode
        self._kept = context.projection.units.copy()
        self._executed = context.projection.units.copy()
        self._even_ratio = self._even_ratio_now()

    def _decide(self, action: Action) -> None:
        limits, centred = self.problem.limits, self.action_mode == "centred"
        if centred:
            gated = self.problem.network.graph.prunable[self._step].ungated is None
            static, runtime = decode_action(action, even_ratio=self._even_ratio, limits=limits, gated=gated)
        else:
            static, runtime = decode_raw_action(action, limits=limits)
        self._kept[self._step], self._executed[self._step] = self._context.projection.project(
            self._step,
            self._kept[: self._step],
            self._executed[: self._step],
            static=static,
            runtime=runtime,
            exhaust=centred,
        )

    def _shaped_reward(self) -> float:
        """Return the dense reward for the group just decided, to be taken back at the end."""
        if not self._dense_reward:
            return 0.0
        reward = step_reward(self._context.expected_group_loss(self._step, int(self._kept[self._step])))
        self._shaping += reward
        return reward

    def _even_ratio_now(self) -> float:
        decided = slice(self._step)
        return self._context.projection.even_ratio(self._step, self._kept[decided], self._executed[decided])

    def _observe(self) -> Observation:
        return self._context.observe(self._step, Widths(self._kept, self._executed), self._even_ratio)
