"""PPO that learns on predicted losses, and evaluates plans to predict better."""

from __future__ import annotations

import math
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import safe_mean
from stable_baselines3.common.vec_env import DummyVecEnv

from prunegym.agents.dyna_ppo.loss_model import LossModel
from prunegym.agents.interface import EpisodicEnvironment
from prunegym.agents.rollout import EpisodeResult

N_SURROGATE_ENVS = 8  # imagined environments in lockstep, so that the policy is asked for all of them at once
MIN_ACTION_STD = 1e-3  # of actions: a policy that does not explore learns nothing
LEARNER = (  # what the learner on imagined episodes has in common with PPO as it was made
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
    """Proximal policy optimisation on imagined episodes, between rounds of evaluated ones.

    Where an episode leads is arithmetic; what costs is only to evaluate the finished plan. So a model of the
    loss is fitted to all evaluations so far, and after each rollout the policy learns from many episodes that
    end with predicted losses; rollouts themselves only feed the model (DyNA-PPO, Angermueller et al., ICLR
    2020; there an ensemble of regressors is used where it predicts well, and rollouts are learned from too).

    Args:
        arguments: see PPO; `n_steps` are those of a rollout.
        imagined_steps: of each of N_SURROGATE_ENVS environments for one update.
        imagined_batch: steps of a minibatch of those.
        updates: after each rollout.
        warmup: evaluations before the first of them; a run that ends sooner learns at its end.
        exploration: standard deviations of actions that an update begins with, from the first to the last.
        settings: see PPO; they hold for learning on imagined episodes.
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
        self._learned_from = 0  # evaluations
        super().__init__(*arguments, **settings)

    def use_surrogates_of_(self, environment: EpisodicEnvironment) -> None:
        """Imagine episodes in twins of this environment; to be called once, before learning or going on."""

        def surrogate() -> Monitor:
            return Monitor(environment.surrogate_env(self.losses.predict))

        learner = {name: getattr(self, name) for name in LEARNER}
        with torch.random.fork_rng(devices=[]):  # it draws weights of its own, only to be given these
            self._imagination = PPO(
                "MlpPolicy",
                DummyVecEnv([surrogate] * N_SURROGATE_ENVS),
                n_steps=self.imagined_steps,
                batch_size=self.imagined_batch,
                **learner,
            )
        self._imagination.policy = self.policy

    def learn(self, *arguments: Any, **settings: Any) -> DynaPPO:
        """Learn as PPO does, at the end from a rollout that was cut short too."""
        super().learn(*arguments, **settings)
        if self._learned_from < len(self.losses):
            self._learn_on_surrogates()
            self.dump_logs()
        return self

    def train(self) -> None:
        """Learn from the evaluations so far, once there are enough to predict from."""
        if len(self.losses) >= self.warmup:
            self._learn_on_surrogates()

    def _learn_on_surrogates(self) -> None:
        """Fit the model to all evaluations, and improve the policy on episodes that it predicts."""
        self.losses.fit()
        self._learned_from = len(self.losses)
        first, last = self.exploration
        deviation = max(MIN_ACTION_STD, last + (first - last) * self._current_progress_remaining)
        self.policy.log_std.data.fill_(math.log(deviation))  # updates on a model end in too little
        learner = self._imagination
        learner.set_logger(self.logger)
        assert learner.env is not None
        learner.env.seed(self._learned_from)  # so that a resumed run draws the same budgets
        _, callback = learner._setup_learn(self.updates * learner.n_steps, progress_bar=False)
        learner._current_progress_remaining = self._current_progress_remaining
        for _ in range(self.updates):
            learner.collect_rollouts(learner.env, callback, learner.rollout_buffer, learner.n_steps)
            learner.train()
        assert learner.ep_info_buffer is not None
        self.logger.record("imagined/ep_rew_mean", safe_mean([one["r"] for one in learner.ep_info_buffer]))

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: Any = None) -> None:
        super()._update_info_buffer(infos, dones)
        for info in infos:
            if "episode_result" in info:
                self.losses.add(EpisodeResult.from_dict(info["episode_result"]))

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_imagination"]
