"""Compressing a network as an episode: one step per site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from prunegym.envs.action import ActionMode, decode_action
from prunegym.envs.budget import Budget, BudgetRange
from prunegym.envs.normalisation import NORMALISER
from prunegym.envs.observation import OBSERVATION_VERSION, observation_names
from prunegym.envs.problem import EpisodeContext, PruningProblem
from prunegym.envs.results import LossPredictor
from prunegym.envs.reward import step_reward

Observation: TypeAlias = NDArray[np.float32]  # [F], each feature in [-1, 1]
Action: TypeAlias = NDArray[np.float32]  # [techniques], each in [-1, 1]; zero is the even plan


class LayerPruningEnv(gym.Env[Observation, Action]):
    """Decide, site by site, how much of a trained network to compress, and in which ways.

    ## Description
    An episode walks the network's sites in execution order: the groups of coupled channels, and, for
    techniques that decide about single layers, all other layers. Each step sets how far each technique goes
    at one site: with the techniques that are on by default, the runtime ratio (survivors skipped for each
    input) and the static ratio (units removed for good). While deciding, nothing is cut: plans are priced by
    arithmetic, and the finished plan is applied once.

    ## Action space
    Box(-1, 1, (techniques,), float32), one entry for each of `action_names`, by default runtime and static
    ratio; see `decode_action`. Zero at every step is the even plan. Any action is valid: decisions are kept
    where the budget can still be met, so a finished plan is never above it, and with one budget and all
    widths allowed below it by at most one level of its last site. Entries of techniques that cannot decide at
    a site are ignored.

    ## Observation space
    Box(-1, 1, (len(observation_names),), float32): the features that `observation_names` lists, normalised
    by `ObservationNormalizer`; of one size and meaning for any network with the same techniques on.

    ## Rewards
    0 at every step but the last; there, how closely the compressed network follows the dense one on the
    reward images, or by the score function, in [0, 1], uniform pruning within the same budget at 0.37: see
    `RewardTerms.total`. With `dense_reward` every step is rewarded; the sum over an episode stays the same.

    ## Starting state
    No site is decided. Within one budget the environment draws no random numbers: equal actions give equal
    episodes. Of a range of budgets, each reset draws one.

    ## Episode end
    The last site terminates the episode; it is never truncated. Every step's `info` holds `site`, the name
    of the site that was decided; the last also `episode_result`, plain data: `plan`, `reward` (its parts and
    `total`), `accuracy`, and `shares`, what remains of the dense network by each measure.

    ## Arguments
    See `__init__`. By name: `gym.make("prunegym/LayerPruning-v0", task="digits")`, or with a model and its
    images in the place of `task`, see `make_env`.

    ## Version history
    v0: first version.
    """

    # declared so by gym.Env, whose checker asks for a frame rate even of text
    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012
    networks = 1
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
            dense_reward: reward each step by the loss expected of its site, see `ExpectedLosses`.
            render_mode: "ansi" or None.
        """
        self.problem = problem
        self.site_names = problem.site_names  # in the order of the steps
        self._space = problem.network.space
        self.techniques = tuple(technique.name for technique in self._space.techniques)
        self.action_names = self._space.keys
        self.observation_names = observation_names(self._space.techniques)
        self.action_mode: ActionMode = actions
        self.render_mode = render_mode
        self._dense_reward = dense_reward
        self.action_space = spaces.Box(-1.0, 1.0, shape=(len(self.action_names),), dtype=np.float32)
        self.observation_space = spaces.Box(-1.0, 1.0, shape=(len(self.observation_names),), dtype=np.float32)
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
        """Decide the next site; apply the plan after the last.

        Raises:
            gymnasium.error.ResetNeeded: the episode is over.
        """
        if self._step == len(self.site_names):
            raise gym.error.ResetNeeded("every site is decided; call reset() to begin another episode")
        self._decide(action)
        reward = self._shaped_reward()
        info: dict[str, Any] = {"site": self.site_names[self._step]}
        self._step += 1
        if self._step == len(self.site_names):  # all decided: a true end, not a time limit
            result = info["episode_result"] = self.problem.results.result_for(
                self._levels,
                uniform=self._context.baseline.uniform,
                expected=self._context.expected_plan_loss(self._levels),
            )
            return self._observe(), reward + result["reward"]["total"] - self._shaping, True, False, info
        self._even = self._context.projection.even(self._step, self._levels)
        return self._observe(), reward, False, False, info

    @property
    def admitted(self) -> NDArray[np.bool_]:
        """Whether an entry of an action has any effect: [sites, techniques]."""
        limits, raw = self.problem.limits, self.action_mode == "raw"
        columns = [
            self._space.available[technique.name]
            & (limits.of(technique) != technique.neutral)
            & (technique.centred or not raw)
            for technique in self._space.techniques
        ]
        return np.stack(columns, axis=1)

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
        plan = self._space.plan(self._levels)
        rows = [
            " ".join([f"{name:<32}", *(f"{plan[name].get(key, '-'):>15.5}" for key in self.action_names)])
            for name in self.site_names[: self._step]
        ]
        return "\n".join([" ".join([f"{'site':<32}", *(f"{key:>15}" for key in self.action_names)]), *rows])

    def _begin(self, context: EpisodeContext) -> None:
        self._context = context
        self._step = 0
        self._shaping = 0.0  # dense rewards given in this episode
        self._levels = {name: of_sites.copy() for name, of_sites in self._space.neutral.items()}
        self._even = context.projection.even(0, self._levels)

    def _decide(self, action: Action) -> None:
        target = decode_action(
            action,
            self._space.techniques,
            even=self._even,
            limits=self.problem.limits,
            mode=self.action_mode,
        )
        decided = self._context.projection.project(
            self._step, self._levels, target, exhaust=self.action_mode == "centred"
        )
        for name, level in decided.items():
            self._levels[name][self._step] = level

    def _shaped_reward(self) -> float:
        """Return the dense reward for the site just decided, to be taken back at the end."""
        if not self._dense_reward:
            return 0.0
        reward = step_reward(self._context.expected_site_loss(self._step, self._levels))
        self._shaping += reward
        return reward

    def _observe(self) -> Observation:
        return self._context.observe(self._step, self._levels, self._even)
