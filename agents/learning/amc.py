"""AMC's search (He et al., ECCV 2018) on Stable-Baselines3's DDPG: the baseline of learned pruning."""

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
MIN_SIGMA = 1e-7  # float32 actions resolve no less, and zero cannot be divided by
PUBLISHED: Mapping[str, Any] = {
    "buffer_size": 10_000,  # steps; the authors keep 100 episodes, and how long one is only the caller knows
    "batch_size": 64,
    "tau": 0.01,
    "gamma": 1.0,
    "gradient_steps": -1,  # one per step taken
}


def truncated_normal(mean: NDArray[np.floating], sigma: float) -> NDArray[np.float64]:
    """Draw from normal distributions of which only the part within [-1, 1] is left.

    Args:
        mean: where each would peak, in [-1, 1], of any shape.
        sigma: the standard deviation before truncation, above 0.

    Returns:
        One value each, of the shape of `mean`; drawn with NumPy's global state.
    """
    centre = torch.as_tensor(mean, dtype=torch.float64)
    low, high = (torch.special.ndtr((bound - centre) / sigma).numpy() for bound in (-1.0, 1.0))
    # the global state, as Stable-Baselines3 draws from it and checkpoints restore it
    quantile = torch.as_tensor(np.random.uniform(low, high))  # noqa: NPY002
    return (centre + sigma * torch.special.ndtri(quantile)).clamp(-1.0, 1.0).numpy()


class EpisodeReplay(ReplayBuffer):
    """Stores whole episodes, each of whose steps carries the reward of the last, and samples them centred.

    From the rewards of each batch sampled, a moving average of the batches' means is subtracted; it moves
    first, by half the distance to the new mean, and begins at the first. An episode is held back until it
    ends, one per environment, and they share one storage.
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
        # one row per step: episodes of several environments do not end together
        super().__init__(buffer_size, observation_space, action_space, device, n_envs=1, **settings)
        self.average_reward: float | None = None
        self.drop_unfinished(n_envs)

    def drop_unfinished(self, n_envs: int) -> None:
        """Forget the steps of episodes that will not be finished, and await those of `n_envs` new ones."""
        self._held: list[list[tuple[Any, ...]]] = [[] for _ in range(n_envs)]

    def add(
        self,
        obs: NDArray[Any],
        next_obs: NDArray[Any],
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Hold back one step of each environment, and store the episodes that it ends.

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
            steps.append((obs[row], next_obs[row], action[row], done[row], infos[row]))
            if done[index]:
                self._store(steps, float(reward[index]))
                steps.clear()

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Draw so many steps, and subtract the moving average from their rewards."""
        batch = super().sample(batch_size, env)
        mean = batch.rewards.mean().item()
        before = mean if self.average_reward is None else self.average_reward
        self.average_reward = before + REWARD_ALPHA * (mean - before)
        return batch._replace(rewards=batch.rewards - self.average_reward)

    def _store(self, steps: list[tuple[Any, ...]], outcome: float) -> None:
        for obs, next_obs, action, done, infos in steps:
            super().add(obs, next_obs, action, np.array([outcome]), done, infos)


class AMC(DDPG):
    """Deep deterministic policy gradient with AMC's exploration, rewards and numbers.

    Kept from the publication: uniform random actions in the warm-up; then a normal distribution around the
    actor's action, truncated to the box and not clipped, that narrows with each finished episode; the
    reward of an episode's last step given to all its steps, less, at each update, a moving average of the
    batches' means; discount 1, batches of 64, target rate 0.01, learning rates 1e-4 (actor) and 1e-3
    (critic), 300-300 hidden units, one update per step, none before the first episode after the warm-up has
    ended.

    What differs: the actor ends in a tanh on [-1, 1], theirs in a sigmoid on [0, 1], so a deviation of 0.5
    there is 1 here; their warm-up is one episode longer than its number; their noise has decayed once when it
    is first used. When the updates come is for `train_freq` to say: at the end of each episode, as theirs,
    with `(1, "episode")`; several environments must count steps, and share one count of episodes.

    All random numbers come from NumPy's global state, never from the action space's, which loading reseeds.
    The moving average of rewards is saved with the replay buffer.

    Args:
        policy: "MlpPolicy", or a class of policies for TD3.
        env: the environment; its actions are a box, its observations an array.
        learning_rate: of the critic.
        actor_learning_rate: of the actor.
        warmup_episodes: how many episodes act at random and learn nothing.
        noise_sigma: standard deviation before truncation right after the warm-up, with the box as [-1, 1].
        noise_decay: what each episode finished after the warm-up multiplies it by.
        policy_kwargs: of the policy; 300-300 hidden units unless they say otherwise.
        ddpg: what else `DDPG` takes, in the place of `PUBLISHED` or beside it: `train_freq`, `seed`...
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
        """The noise's standard deviation before truncation, after the episodes finished so far."""
        decays = max(0, self._episode_num - self.warmup_episodes)
        return max(self.noise_sigma * self.noise_decay**decays, MIN_SIGMA)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Do so many updates, if an episode after the warm-up has ended."""
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
