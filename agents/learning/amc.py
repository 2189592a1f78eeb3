"""AMC (He et al., ECCV 2018) on Stable-Baselines3's DDPG, a baseline for learned pruning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import DDPG
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, ReplayBufferSamples, Schedule
from stable_baselines3.common.utils import update_learning_rate
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.td3.policies import TD3Policy

REWARD_ALPHA = 0.5  # weight of the newest batch in the moving average of rewards
MIN_SIGMA = 1e-7  # the resolution of float32 actions; the noise is divided by sigma, which may not be 0
PUBLISHED: Mapping[str, Any] = {
    "buffer_size": 10_000,  # steps; the authors keep 100 episodes, whose length only the caller knows
    "batch_size": 64,
    "tau": 0.01,
    "gamma": 1.0,
    "gradient_steps": -1,  # one per step taken
}


def truncated_normal(mean: NDArray[np.floating], sigma: float) -> NDArray[np.float64]:
    """Draw from normal distributions that are truncated to [-1, 1].

    Args:
        mean: mean of each distribution before truncation, in [-1, 1], of any shape.
        sigma: standard deviation before truncation, above 0.

    Returns:
        One value for each mean, of the shape of `mean`; drawn with NumPy's global state.
    """
    centre = torch.as_tensor(mean, dtype=torch.float64)
    low, high = (torch.special.ndtr((bound - centre) / sigma).numpy() for bound in (-1.0, 1.0))
    # the global state, as Stable-Baselines3 draws from it and checkpoints restore it
    quantile = torch.as_tensor(np.random.uniform(low, high))  # noqa: NPY002
    return (centre + sigma * torch.special.ndtri(quantile)).clamp(-1.0, 1.0).numpy()


class EpisodeReplay(ReplayBuffer):
    """A replay buffer of whole episodes; every step gets the reward of its episode's last step.

    A moving average of the batches' mean rewards is subtracted from the rewards of each sampled batch. It is
    updated before that, by half the distance to the batch's mean, and starts at the first batch's mean. The
    steps of an episode are held back until it ends. All environments share one storage.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: torch.device | str = "auto",
        n_envs: int = 1,
        **settings: Any,
    ) -> None:
        # rows of single steps, as episodes of several environments do not end together
        super().__init__(buffer_size, observation_space, action_space, device, n_envs=1, **settings)
        self.average_reward: float | None = None
        self.drop_unfinished(n_envs)

    def drop_unfinished(self, n_envs: int) -> None:
        """Drop the steps held back of unfinished episodes, before `n_envs` environments begin new ones."""
        self._held: list[list[dict[str, Any]]] = [[] for _ in range(n_envs)]

    def add(
        self,
        obs: NDArray[Any],
        next_obs: NDArray[Any],
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Hold back one step of each environment, and store the episodes that end with it.

        Args:
            obs: [n_envs, F].
            next_obs: [n_envs, F], of the same episodes.
            action: [n_envs, A], in [-1, 1].
            reward: [n_envs].
            done: [n_envs].
            infos: one per environment.
        """
        for index, steps in enumerate(self._held):
            row = slice(index, index + 1)
            steps.append(
                {
                    "obs": obs[row],
                    "next_obs": next_obs[row],
                    "action": action[row],
                    "done": done[row],
                    "infos": infos[row],
                }
            )
            if done[index]:
                last_reward = np.array([float(reward[index])])
                for step in steps:
                    super().add(reward=last_reward, **step)
                steps.clear()

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Sample a batch, and subtract the moving average from its rewards."""
        batch = super().sample(batch_size, env)
        mean = batch.rewards.mean().item()
        previous = mean if self.average_reward is None else self.average_reward
        self.average_reward = previous + REWARD_ALPHA * (mean - previous)
        return batch._replace(rewards=batch.rewards - self.average_reward)


class AMC(DDPG):
    """Deep deterministic policy gradient with the exploration, rewards and hyper-parameters of AMC.

    As published: uniform random actions in the warm-up; then a normal distribution around the actor's action,
    truncated to the box instead of clipped, whose standard deviation decays with each finished episode; all
    steps of an episode get the reward of the last one, from which each update subtracts a moving average of
    the batches' means; discount 1, batches of 64, target rate 0.01, learning rates 1e-4 (actor) and 1e-3
    (critic), 300-300 hidden units, one update per step, and no update before the first episode after the
    warm-up has ended.

    Differences: the actor ends in a tanh on [-1, 1] and the authors' in a sigmoid on [0, 1], so that their
    standard deviation of 0.5 is 1 here; the authors' warm-up is one episode longer than its number; their
    noise has decayed once before it is first used. `train_freq` decides when updates take place: with
    `(1, "episode")` at the end of each episode, as in the authors' code; with several environments it must
    count steps, and they share one count of episodes.

    All random numbers come from NumPy's global state, which checkpoints restore.

    Args:
        policy: "MlpPolicy", or a policy class for TD3.
        env: an environment with box actions and array observations.
        learning_rate: learning rate of the critic.
        actor_learning_rate: learning rate of the actor.
        warmup_episodes: number of episodes with random actions and without updates.
        noise_sigma: standard deviation before truncation, right after the warm-up, for actions in [-1, 1].
        noise_decay: factor of the standard deviation for each episode finished after the warm-up.
        policy_kwargs: arguments of the policy; by default 300-300 hidden units.
        ddpg: further arguments of `DDPG`, such as `train_freq` or `seed`; they replace those in `PUBLISHED`.
    """

    replay_buffer: EpisodeReplay

    def __init__(
        self,
        policy: str | type[TD3Policy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        *,
        actor_learning_rate: float = 1e-4,
        warmup_episodes: int = 100,
        noise_sigma: float = 1.0,
        noise_decay: float = 0.95,
        policy_kwargs: Mapping[str, Any] | None = None,
        **ddpg: Any,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate,
            learning_starts=0,  # the warm-up counts episodes, not steps; see `train`
            action_noise=None,
            replay_buffer_class=EpisodeReplay,
            policy_kwargs={"net_arch": [300, 300], **(policy_kwargs or {})},
            **{**PUBLISHED, **ddpg},
        )
        self.actor_learning_rate = actor_learning_rate
        self.warmup_episodes = warmup_episodes
        self.noise_sigma = noise_sigma
        self.noise_decay = noise_decay

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise before truncation, after the episodes finished so far."""
        decays = max(0, self._episode_num - self.warmup_episodes)
        return max(self.noise_sigma * self.noise_decay**decays, MIN_SIGMA)

    def run_state(self) -> dict[str, Any]:
        """Return the moving average of rewards, as plain data."""
        return {"average_reward": self.replay_buffer.average_reward}

    def restore_run_state_(self, state: Mapping[str, Any]) -> None:
        """Restore what `run_state` returned."""
        average = state["average_reward"]
        self.replay_buffer.average_reward = None if average is None else float(average)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Do `gradient_steps` updates, if an episode after the warm-up has ended."""
        if self._episode_num > self.warmup_episodes:
            super().train(gradient_steps, batch_size)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        if self._episode_num < self.warmup_episodes:
            drawn = np.random.uniform(-1.0, 1.0, (n_envs, self.replay_buffer.action_dim))  # noqa: NPY002
        else:
            assert self._last_obs is not None, "`_setup_learn` resets the environments first"
            action, _ = self.predict(self._last_obs)
            drawn = truncated_normal(self.policy.scale_action(action), self.sigma)
        scaled = drawn.astype(np.float32)
        return self.policy.unscale_action(scaled), scaled

    def _update_learning_rate(self, optimizers: list[torch.optim.Optimizer] | torch.optim.Optimizer) -> None:
        super()._update_learning_rate(optimizers)
        update_learning_rate(self.actor.optimizer, self.actor_learning_rate)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        *others: Any,
    ) -> tuple[int, BaseCallback]:
        if reset_num_timesteps or self._last_obs is None:  # Stable-Baselines3 will reset the environments
            self.replay_buffer.drop_unfinished(self.n_envs)
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *others)
