"""PPO that learns in surrogate environments, whose losses are predicted, and evaluates plans to fit them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import safe_mean
from stable_baselines3.common.vec_env import DummyVecEnv

from prunegym.agents.dyna_ppo.loss_model import LossModel
from prunegym.agents.interface import EpisodicEnvironment
from prunegym.agents.rollout import EpisodeResult

N_SURROGATE_ENVS = 8  # in lockstep, so that one forward pass of the policy serves all of them
MIN_ACTION_STD = 1e-3  # a policy that does not explore learns nothing
SHARED_SETTINGS = (  # arguments of PPO that the learner in surrogate environments takes over
    "learning_rate",
    "n_epochs",
    "gamma",
    "gae_lambda",
    "clip_range",
    "ent_coef",
    "vf_coef",
    "max_grad_norm",
    "policy_kwargs",
    "device",
)


class DynaPPO(PPO):
    """Proximal policy optimisation on episodes with predicted losses, between rollouts with evaluated plans.

    The steps of an episode are mere arithmetic; only the evaluation of the finished plan is expensive. So a
    model of the loss is fitted to all evaluations so far, and after each rollout the policy learns from many
    episodes that end with predicted losses. The rollouts themselves serve the model alone. This is DyNA-PPO
    (Angermueller et al., ICLR 2020), which however uses an ensemble of regressors, only where it predicts
    well, and learns from the rollouts too.

    Args:
        arguments: the arguments of PPO.
        imagined_steps: steps of each of N_SURROGATE_ENVS surrogate environments for one update.
        imagined_batch: size of a minibatch of those steps.
        updates: number of updates after each rollout.
        warmup: number of evaluations before the first update; a shorter run learns at its end.
        exploration: standard deviation of the actions at the start of the first and of the last update;
            linear in between.
        settings: the keyword arguments of PPO. `n_steps` is the length of a rollout with evaluated plans; the
            others apply to learning in surrogate environments.
    """

    def __init__(
        self,
        *arguments: Any,
        imagined_steps: int = 0,
        imagined_batch: int = 0,
        updates: int = 0,
        warmup: int = 0,
        exploration: tuple[float, float] = (0.25, 0.05),
        **settings: Any,
    ) -> None:
        self.imagined_steps = imagined_steps
        self.imagined_batch = imagined_batch
        self.updates = updates
        self.warmup = warmup
        self.exploration = exploration
        self.losses = LossModel()
        self._n_learned = 0  # evaluations that the policy has learned from
        super().__init__(*arguments, **settings)

    def use_surrogates_of_(self, environment: EpisodicEnvironment) -> None:
        """Create the surrogates of an environment, and PPO that learns in them; call once before `learn`."""

        def surrogate() -> Monitor:
            return Monitor(environment.surrogate_env(self.losses.predict))

        shared = {name: getattr(self, name) for name in SHARED_SETTINGS}
        # constructing it consumes random numbers for a policy that is replaced below
        with torch.random.fork_rng(devices=[]):
            self._surrogate_learner = PPO(
                "MlpPolicy",
                DummyVecEnv([surrogate] * N_SURROGATE_ENVS),
                n_steps=self.imagined_steps,
                batch_size=self.imagined_batch,
                **shared,
            )
        self._surrogate_learner.policy = self.policy

    def run_state(self) -> dict[str, Any]:
        """Return the evaluations and the hyper-parameters fitted to them, as plain data."""
        return {"losses": self.losses.to_list(), "n_learned": self._n_learned}

    def restore_run_state_(self, state: Mapping[str, Any]) -> None:
        """Restore what `run_state` returned."""
        self.losses.restore_(state["losses"])
        self._n_learned = int(state["n_learned"])

    def learn(self, *arguments: Any, **settings: Any) -> DynaPPO:
        """Learn as PPO does, and at the end from the evaluations of a last, incomplete rollout too."""
        super().learn(*arguments, **settings)
        if self._n_learned < len(self.losses):
            self._learn_on_surrogates()
            self.dump_logs()
        return self

    def train(self) -> None:
        """Learn on predicted losses, once `warmup` evaluations are there to predict them from."""
        if len(self.losses) >= self.warmup:
            self._learn_on_surrogates()

    def _learn_on_surrogates(self) -> None:
        """Fit the model to all evaluations, and improve the policy on episodes with predicted losses."""
        self.losses.fit()
        self._n_learned = len(self.losses)
        # training on predicted rewards collapses exploration, so a schedule sets its scale
        first, last = self.exploration
        action_std = max(MIN_ACTION_STD, last + (first - last) * self._current_progress_remaining)
        self.policy.log_std.data.fill_(math.log(action_std))
        learner = self._surrogate_learner
        learner.set_logger(self.logger)
        assert learner.env is not None
        learner.env.seed(self._n_learned)  # so that a resumed run draws the same budgets
        _, callback = learner._setup_learn(self.updates * learner.n_steps, progress_bar=False)
        learner._current_progress_remaining = self._current_progress_remaining
        for _ in range(self.updates):
            learner.collect_rollouts(learner.env, callback, learner.rollout_buffer, learner.n_steps)
            learner.train()
        assert learner.ep_info_buffer is not None
        rewards = [episode["r"] for episode in learner.ep_info_buffer]
        self.logger.record("imagined/ep_rew_mean", safe_mean(rewards))

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: Any = None) -> None:
        super()._update_info_buffer(infos, dones)
        for info in infos:
            if "episode_result" in info:
                self.losses.add(EpisodeResult.from_dict(info["episode_result"]))

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_surrogate_learner"]
