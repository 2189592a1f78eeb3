"""Make a vector of environments: one in this process, or several in forks or on a Ray cluster."""

from __future__ import annotations

import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from prunegym.agents.errors import AgentError
from prunegym.agents.interface import GymEnv, episodic_environment
from prunegym.agents.vector.forked import ForkedVecEnv, follow_parent
from prunegym.agents.vector.ray_workers import RayVecEnv
from prunegym.agents.vector.wrappers import ReportedFailures, RestartableEpisodes


def vectorized(env: GymEnv, *, n_envs: int = 1, cluster: str | None = None) -> VecEnv:
    """Return `n_envs` environments that step in lockstep, each in a process of its own with one thread.

    The processes are forks, so that network, images and cached results are shared and not copied. Each
    network's first episode is begun before forking, so that its results are computed only once. A single
    environment stays in this process, unless a cluster is given.

    Args:
        env: the environment to replicate.
        n_envs: number of environments.
        cluster: address of the Ray cluster whose processes are used, see `connected`; None for forks.

    Raises:
        AgentError: fewer than one, or several where CUDA is in use, which does not survive a fork; or see
            `RayVecEnv`.
    """
    if n_envs < 1:
        raise AgentError(f"the number of environments must be 1 or more, got {n_envs}")
    if n_envs == 1 and cluster is None:
        return DummyVecEnv([lambda: Monitor(RestartableEpisodes(env))])
    if torch.cuda.is_initialized() and cluster is None:
        raise AgentError(
            "several environments need processes, which cannot share a GPU that is in use; "
            "leave out --n-envs, or use --device cpu, or --cluster"
        )
    for _ in range(episodic_environment(env).networks):
        env.reset()
    if cluster is not None:
        return RayVecEnv(env, n_envs=n_envs, address=cluster)

    def start() -> GymEnv:
        follow_parent()
        torch.set_num_threads(1)
        return ReportedFailures(Monitor(RestartableEpisodes(env)))

    return ForkedVecEnv([start] * n_envs)
