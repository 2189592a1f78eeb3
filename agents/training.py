"""Learning a policy with an exact number of evaluations, and going on where an interrupted run stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor

from agents.algorithms import ALGORITHMS, Algorithm
from agents.callbacks import CheckpointCallback, EpisodeCallback
from agents.checkpoints import RestartableEpisodes, read_checkpoint, save_checkpoint
from agents.errors import CheckpointError
from agents.history import EpisodeHistory
from agents.interface import GymEnv, observation_schema, pruning_environment
from agents.progress import EpisodeBar
from agents.rollout import EpisodeResult, deterministic, run_episode
from agents.search import require_episodes
from agents.tensorboard import TensorBoardCallback


@dataclass(frozen=True)
class LearningResult:
    """A learned policy and its two candidate plans."""

    model: BaseAlgorithm
    best: EpisodeResult  # the highest reward among the episodes that explored, if any did
    final: EpisodeResult  # what the learned policy decides without exploring
    episodes: int  # evaluations used, the final one and those before an interruption included


@dataclass(frozen=True)
class _Run:
    """A run at its beginning, or as a checkpoint kept it."""

    identity: dict[str, Any]  # plain data; a checkpoint of another identity is not this run's
    env: RestartableEpisodes
    model: BaseAlgorithm
    history: EpisodeHistory


def learn(
    env: GymEnv,
    *,
    algorithm: str = "ppo",
    episodes: int,
    seed: int,
    device: str = "cpu",
    tensorboard_log: Path | None = None,
    progress: bool = False,
    on_episode: Callable[[EpisodeResult], None] | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
) -> LearningResult:
    """Learn a policy; the last episode is what the policy decides without exploring.

    Args:
        env: a pruning environment.
        algorithm: a name in `ALGORITHMS`.
        episodes: how many evaluations to spend, all of them.
        seed: of the environment, the network and the exploration.
        device: where the policy network lives; it is small, so a CPU serves best.
        tensorboard_log: the folder that gets the run's folder, or None.
        progress: show a bar on standard error.
        on_episode: called after each episode; what it raises ends the run.
        checkpoint: the folder that keeps the run after each update, or None.
        resume: go on from `checkpoint` if a run was kept there, else begin.

    Raises:
        UnknownAlgorithmError: there is no such algorithm.
        CheckpointError: the checkpoint is damaged, of another run, or already has as many episodes.
        AgentError: fewer than one episode.
    """
    require_episodes(episodes)
    spec = ALGORITHMS[algorithm]
    kept = checkpoint if resume else None
    run = _start(env, spec, seed=seed, device=device, tensorboard_log=tensorboard_log, kept=kept)
    if run.history.episodes >= episodes:
        raise CheckpointError(
            f"{checkpoint} already holds {run.history.episodes} episodes of {episodes} in all; ask for more"
        )
    board = TensorBoardCallback(run.history, {"algorithm": algorithm, "seed": seed, **spec.hyperparameters})
    with EpisodeBar(algorithm, episodes=episodes, shown=progress, history=run.history) as bar:
        listeners = [board.write_episode, bar.show, *([on_episode] if on_episode else [])]
        counter = EpisodeCallback(run.history, listeners, last_step=(episodes - 1) * len(run.history.groups))
        try:
            return _spend(run, counter, board, checkpoint)
        finally:
            board.close()


def _spend(
    run: _Run, counter: EpisodeCallback, board: TensorBoardCallback, checkpoint: Path | None
) -> LearningResult:
    """Spend all episodes but one on learning, the last on what was learned."""
    callbacks: list[BaseCallback] = [counter, board]
    if checkpoint:
        save = partial(
            save_checkpoint, checkpoint, run.model, run=run.identity, history=run.history, env=run.env
        )
        callbacks.append(CheckpointCallback(run.history, save))
    run.model.learn(
        counter.last_step - run.history.steps,
        callbacks,
        log_interval=1,
        tb_log_name=run.identity["algorithm"],
        reset_num_timesteps=not run.history.episodes,  # a resumed run goes on counting, in the same curves
    )
    best = run.history.best
    final = run_episode(run.env, deterministic(run.model))
    counter.announce(final)
    board.write_overview()
    return LearningResult(run.model, best or final, final, run.history.episodes)


def _start(
    env: GymEnv, spec: Algorithm, *, seed: int, device: str, tensorboard_log: Path | None, kept: Path | None
) -> _Run:
    """Begin a run, or take up the one that the folder `kept` holds."""
    identity = {
        "algorithm": spec.name,
        "seed": seed,
        "hyperparameters": dict(spec.hyperparameters),
        "groups": list(pruning_environment(env).group_names),
        "observation": observation_schema(env),
    }
    restartable = RestartableEpisodes(env)
    checkpoint = read_checkpoint(kept, run=identity) if kept else None
    if checkpoint:
        model = checkpoint.restore(
            spec.model_class, restartable, device=device, tensorboard_log=tensorboard_log
        )
        return _Run(identity, restartable, model, checkpoint.history)
    model = spec.make(Monitor(restartable), seed, device, tensorboard_log, spec.hyperparameters)
    return _Run(identity, restartable, model, EpisodeHistory(pruning_environment(env).group_names))
