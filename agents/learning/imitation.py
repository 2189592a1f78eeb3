"""Imitation: train a policy network to act as another policy does, without evaluating plans."""

from __future__ import annotations

import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor
from torch.nn.functional import mse_loss

from prunegym.agents.interface import EpisodicEnvironment
from prunegym.agents.rollout import deterministic

N_EPISODES = 64  # whose observations are imitated on
NOISE_STD = 0.25  # of actions around the teacher's, so that states that exploration reaches are imitated too
N_EPOCHS, BATCH_SIZE, LEARNING_RATE = 400, 512, 2e-3


def imitate_(
    student: ActorCriticPolicy, teacher: ActorCriticPolicy, environment: EpisodicEnvironment, *, seed: int
) -> None:
    """Train a policy to have the actions, exploration and values of another one, whatever the layers of both.

    Behavioural cloning: regression on the teacher's outputs for observations of a surrogate environment.
    """
    observations = _observations(teacher, environment, seed).to(student.device)
    with torch.no_grad():
        means, values = _actions_and_values(teacher.to(student.device), observations)
        student.log_std.copy_(teacher.log_std)
    shuffle = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(student.parameters(), LEARNING_RATE)
    for _ in range(N_EPOCHS):
        for batch in torch.randperm(len(observations), generator=shuffle).split(BATCH_SIZE):
            batch = batch.to(student.device)
            mean, value = _actions_and_values(student, observations[batch])
            optimizer.zero_grad()
            (mse_loss(mean, means[batch]) + mse_loss(value, values[batch])).backward()
            optimizer.step()


def _observations(teacher: ActorCriticPolicy, environment: EpisodicEnvironment, seed: int) -> Tensor:
    """Return the observations of episodes with actions around those of the teacher: [steps, F]."""
    surrogate = environment.surrogate_env(lambda plan, expected: expected)
    act, random = deterministic(teacher), np.random.default_rng(seed)
    observations = []
    for episode in range(N_EPISODES):
        observation, _ = surrogate.reset(seed=seed if episode == 0 else None)
        done = False
        while not done:
            observations.append(observation)
            action = act(observation) + random.normal(0.0, NOISE_STD, 2)
            observation, _, done, *_ = surrogate.step(action.clip(-1.0, 1.0).astype(np.float32))
    return torch.from_numpy(np.stack(observations))


def _actions_and_values(policy: ActorCriticPolicy, observations: Tensor) -> tuple[Tensor, Tensor]:
    return policy.get_distribution(observations).mode(), policy.predict_values(observations)
