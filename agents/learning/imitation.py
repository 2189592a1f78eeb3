"""Giving a network the policy of another one, at no evaluation."""

from __future__ import annotations

import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor
from torch.nn.functional import mse_loss

from prunegym.agents.interface import EpisodicEnvironment
from prunegym.agents.rollout import deterministic

EPISODES = 64  # to imitate on
DEVIATION = 0.25  # of their actions from the teacher's, so that what a learner tries is imitated too
EPOCHS, BATCH, LEARNING_RATE = 400, 512, 2e-3


def imitate_(
    student: ActorCriticPolicy, teacher: ActorCriticPolicy, environment: EpisodicEnvironment, *, seed: int
) -> None:
    """Teach a policy to act, to explore and to value as another one does, whatever the layers of both.

    Regression on what the teacher answers to observations of imagined episodes (behavioural cloning).
    """
    observations = _observations(teacher, environment, seed).to(student.device)
    with torch.no_grad():
        means, values = _answers(teacher.to(student.device), observations)
        student.log_std.copy_(teacher.log_std)
    shuffle = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(student.parameters(), LEARNING_RATE)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(observations), generator=shuffle).split(BATCH):
            batch = batch.to(student.device)
            mean, value = _answers(student, observations[batch])
            optimizer.zero_grad()
            (mse_loss(mean, means[batch]) + mse_loss(value, values[batch])).backward()
            optimizer.step()


def _observations(teacher: ActorCriticPolicy, environment: EpisodicEnvironment, seed: int) -> Tensor:
    """Return what is observed where actions are near those of the teacher: [steps, F]."""
    surrogate = environment.surrogate_env(lambda plan, expected: expected)
    act, random = deterministic(teacher), np.random.default_rng(seed)
    found = []
    for episode in range(EPISODES):
        observation, _ = surrogate.reset(seed=seed if episode == 0 else None)
        done = False
        while not done:
            found.append(observation)
            action = act(observation) + random.normal(0.0, DEVIATION, 2)
            observation, _, done, *_ = surrogate.step(action.clip(-1.0, 1.0).astype(np.float32))
    return torch.from_numpy(np.stack(found))


def _answers(policy: ActorCriticPolicy, observations: Tensor) -> tuple[Tensor, Tensor]:
    return policy.get_distribution(observations).mode(), policy.predict_values(observations)
