"""Learn a policy with an exact number of evaluations; an interrupted run can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv

from prunegym.agents.dyna_ppo.algorithm import DynaPPO
from prunegym.agents.episode_log import EpisodeLog
from prunegym.agents.errors import CheckpointError
from prunegym.agents.history import EpisodeHistory
from prunegym.agents.interface import GymEnv, action_schema, episodic_environment, observation_schema
from prunegym.agents.learning.algorithms import ALGORITHMS, DEFAULT_ALGORITHM, RolloutSchedule, with_overrides
from prunegym.agents.learning.callbacks import CheckpointCallback, EpisodeCallback
from prunegym.agents.learning.checkpoints import Checkpoint, read_checkpoint, save_checkpoint
from prunegym.agents.learning.imitation import imitate_
from prunegym.agents.learning.policies import Policy, fitting_hyperparameters
from prunegym.agents.learning.tensorboard import TensorBoardCallback, continues_curves, log_nowhere_
from prunegym.agents.progress import EpisodeBar
from prunegym.agents.rollout import EpisodeResult, deterministic, exploring, require_episodes, run_episode
from prunegym.agents.vector.make import vectorized
from prunegym.pruning.machine_failures import written_to

# regularisation, so that a policy learned on a few networks suits others: PPO's policies are then linear and
# have weight decay
FOR_MULTIPLE_NETWORKS: Mapping[str, Any] = {"policy_kwargs.net_arch": [], "weight_decay": 0.2}


@dataclass(frozen=True)
class LearningConfig:
    """Settings of learning other than algorithm, number of episodes and seed."""

    hyperparameters: Mapping[str, Any] = field(default_factory=dict)  # replace the algorithm's defaults
    initial_policy: Policy | None = None  # to continue from, instead of from uniform pruning
    n_envs: int = 1  # processes that run episodes in parallel, see `vectorized`; results depend on it
    cluster: str | None = None  # address of the Ray cluster whose processes are used; None for forks
    device: str = "cpu"  # of the policy network, which is small, so that a CPU is fastest


@dataclass(frozen=True)
class Recording:
    """Files, callbacks and progress bar of learning, and whether to resume."""

    tensorboard: Path | None = None  # parent of the folder that gets this run's curves
    checkpoint: Path | None = None  # the folder that keeps the run after updates
    resume: bool = False  # continue from `checkpoint` if it holds a run, else begin
    log: EpisodeLog | None = None  # gets each episode; holds those of an interrupted run
    uniform: EpisodeResult | None = None  # result of the uniform plan, a reference in TensorBoard
    on_episode: Callable[[EpisodeResult], None] | None = None  # an exception in it ends the run
    progress: bool = False  # show a bar on standard error


@dataclass(frozen=True)
class LearningResult:
    """A learned policy and its two candidate plans."""

    model: BaseAlgorithm
    best: EpisodeResult  # the highest reward among the episodes with exploration, if there are any
    final: EpisodeResult  # the learned policy's episode without exploration
    episodes: int  # evaluations used, the final one and those before an interruption included


@dataclass(frozen=True)
class _Run:
    """A run at its beginning, or as restored from a checkpoint."""

    identity: dict[str, Any]  # plain data that a checkpoint must have in common with the run
    envs: VecEnv
    schedule: RolloutSchedule
    model: BaseAlgorithm
    history: EpisodeHistory


def learn(
    env: GymEnv,
    *,
    episodes: int,
    seed: int,
    algorithm: str = DEFAULT_ALGORITHM,
    config: LearningConfig = LearningConfig(),
    recording: Recording = Recording(),
) -> LearningResult:
    """Learn a policy; the last episode is that of the learned policy without exploration.

    Args:
        env: a pruning environment of one network or of several.
        episodes: number of evaluations to spend. With several processes, episodes that do not fill a round
            are run in one process after learning, with exploration.
        seed: seed of the environment, the policy network and the exploration.
        algorithm: a name in `ALGORITHMS`.
        config: further settings of learning.
        recording: what is written to disk and shown.

    Raises:
        UnknownNameError: there is no such algorithm.
        HyperparameterError: it has no such hyper-parameter.
        PolicyError: the initial policy is of another algorithm.
        CheckpointError: the checkpoint is damaged, of another run, or already has as many episodes.
        AgentError: fewer than one episode or environment.
    """
    require_episodes(episodes)
    identity = _identity(env, algorithm, seed, config)
    checkpoint = None
    if recording.resume and recording.checkpoint:
        checkpoint = read_checkpoint(recording.checkpoint, run=identity, history=EpisodeHistory.from_dict)
    known = checkpoint.history.episodes if checkpoint else 0
    if known >= episodes:
        raise CheckpointError(
            f"{recording.checkpoint} already holds {known} episodes of {episodes} in all; ask for more"
        )
    if recording.log is not None:
        recording.log.resume(episodic_environment(env), algorithm, known)
    envs = vectorized(env, n_envs=config.n_envs, cluster=config.cluster)
    try:
        run = _begin(identity, env, envs, checkpoint, config, recording)
        return _spend(run, env, episodes, recording)
    finally:
        envs.close()


def _identity(env: GymEnv, algorithm: str, seed: int, config: LearningConfig) -> dict[str, Any]:
    """Return the settings, as plain data, that a run has in common with the checkpoint it continues from."""
    environment = episodic_environment(env)
    spec, overrides = ALGORITHMS[algorithm], config.hyperparameters
    settings = with_overrides(spec, overrides)
    if environment.networks > 1 and issubclass(spec.model_class, PPO):
        settings = with_overrides(spec, {**FOR_MULTIPLE_NETWORKS, **overrides})
    if config.initial_policy is not None:
        settings = fitting_hyperparameters(config.initial_policy, algorithm, settings, overridden=overrides)
    return {
        "algorithm": algorithm,
        "seed": seed,
        "hyperparameters": settings,
        "initial policy": config.initial_policy and config.initial_policy.digest,
        "environments": config.n_envs,
        "sites": list(environment.site_names),
        "actions": action_schema(env),
        "observation": observation_schema(env),
    }


def _begin(
    identity: dict[str, Any],
    env: GymEnv,
    envs: VecEnv,
    checkpoint: Checkpoint[EpisodeHistory] | None,
    config: LearningConfig,
    recording: Recording,
) -> _Run:
    """Return a run at its beginning, or as restored from a checkpoint."""
    spec, environment = ALGORITHMS[identity["algorithm"]], episodic_environment(env)
    schedule = RolloutSchedule(len(environment.site_names), environment.networks, config.n_envs)
    model = spec.make(
        envs,
        schedule,
        hyperparameters=identity["hyperparameters"],
        seed=identity["seed"],
        device=config.device,
        tensorboard_log=recording.tensorboard,
    )
    if isinstance(model, DynaPPO):
        model.use_surrogates_of_(environment)
    if checkpoint:
        checkpoint.restore_(model, envs)
    elif config.initial_policy is not None:
        _initialize_(model, config.initial_policy, env, seed=identity["seed"])
    if recording.tensorboard is None:
        log_nowhere_(model)
    history = checkpoint.history if checkpoint else EpisodeHistory(identity["sites"])
    return _Run(identity, envs, schedule, model, history)


def _initialize_(model: BaseAlgorithm, policy: Policy, env: GymEnv, *, seed: int) -> None:
    """Initialise an untrained model with the weights of a policy, or by imitating one with other layers."""
    if model.policy_kwargs["net_arch"] == policy.description["shape"]["net_arch"]:
        policy.load_into_(model.policy)
    else:
        student, teacher = model.policy, policy.build(env)
        assert isinstance(student, ActorCriticPolicy)
        assert isinstance(teacher, ActorCriticPolicy)
        imitate_(student, teacher, episodic_environment(env), seed=seed)


def _spend(run: _Run, env: GymEnv, episodes: int, recording: Recording) -> LearningResult:
    """Spend all episodes but one on learning, and the last one on the learned policy."""
    algorithm, seed = run.identity["algorithm"], run.identity["seed"]
    labels = {"algorithm": algorithm, "seed": seed, **run.identity["hyperparameters"]}
    board = TensorBoardCallback(run.history, labels, log=recording.log, uniform=recording.uniform)
    # the log is first, so that an error in another listener cannot lose the episode
    listeners: list[Callable[[EpisodeResult], None]] = []
    if recording.log is not None:
        listeners.append(partial(recording.log.append, algorithm))
    if recording.on_episode is not None:
        listeners.append(recording.on_episode)
    # environments in lockstep end their episodes together, so those that do not fill a round come after
    last = (episodes - 1) // run.schedule.n_envs * run.schedule.n_envs
    with (
        written_to(recording.tensorboard),
        EpisodeBar(algorithm, episodes=episodes, shown=recording.progress, history=run.history) as bar,
    ):
        counter = EpisodeCallback(run.history, [*listeners, board.write_episode, bar.show], last=last)
        callbacks: list[BaseCallback] = [counter, board]
        if recording.checkpoint:
            save = partial(
                save_checkpoint,
                recording.checkpoint,
                run.model,
                run=run.identity,
                history=run.history,
                env=run.envs,
            )
            callbacks.append(CheckpointCallback(run.history, save))
        try:
            steps = last * run.schedule.steps // run.schedule.networks
            run.model.learn(
                max(0, steps - run.history.steps),
                callbacks,
                log_interval=1,
                tb_log_name=algorithm,
                reset_num_timesteps=not continues_curves(run.model, algorithm, resume=recording.resume),
            )
            # seeded, as with several processes this process's environment has had no seed yet
            for index in range(episodes - 1 - last):
                counter.announce(run_episode(env, exploring(run.model), seed=seed + index))
            best = run.history.best
            final = run_episode(env, deterministic(run.model), seed=seed)
            counter.announce(final)
            board.write_overview()
        except KeyboardInterrupt:
            raise  # perhaps while the log is locked, where closing would wait for minutes; all is flushed
        except BaseException:
            with suppress(OSError):  # as where what it writes to is what has failed
                board.close()
            raise
        board.close()
    return LearningResult(run.model, best or final, final, run.history.episodes)
