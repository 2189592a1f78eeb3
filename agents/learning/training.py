"""Learning a policy with an exact number of evaluations, and going on where an interrupted run stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from prunegym.agents.interface import GymEnv, episodic_environment, observation_schema
from prunegym.agents.learning.algorithms import ALGORITHMS, DEFAULT_ALGORITHM, RolloutSchedule, with_overrides
from prunegym.agents.learning.callbacks import CheckpointCallback, EpisodeCallback
from prunegym.agents.learning.checkpoints import Checkpoint, read_checkpoint, save_checkpoint
from prunegym.agents.learning.imitation import imitate_
from prunegym.agents.learning.policies import Policy, fitting_hyperparameters
from prunegym.agents.learning.tensorboard import TensorBoardCallback, goes_on_in_curves, log_nowhere_
from prunegym.agents.progress import EpisodeBar
from prunegym.agents.rollout import EpisodeResult, deterministic, exploring, require_episodes, run_episode
from prunegym.agents.vector.make import vectorized

# what a few networks teach must hold for others: a policy of PPO's kind is linear, and what they do not ask
# for decays
FOR_MULTIPLE_NETWORKS: Mapping[str, Any] = {"policy_kwargs.net_arch": [], "weight_decay": 0.2}


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
    envs: VecEnv
    rounds: RolloutSchedule
    model: BaseAlgorithm
    history: EpisodeHistory


def learn(
    env: GymEnv,
    *,
    algorithm: str = DEFAULT_ALGORITHM,
    episodes: int,
    seed: int,
    hyperparameters: Mapping[str, Any] | None = None,
    initial_policy: Policy | None = None,
    n_envs: int = 1,
    cluster: str | None = None,
    device: str = "cpu",
    tensorboard_log: Path | None = None,
    progress: bool = False,
    log: EpisodeLog | None = None,
    uniform: EpisodeResult | None = None,
    on_episode: Callable[[EpisodeResult], None] | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
) -> LearningResult:
    """Learn a policy; the last episode is what the policy decides without exploring.

    Args:
        env: a pruning environment, of one network or of several.
        algorithm: a name in `ALGORITHMS`.
        episodes: how many evaluations to spend. Side by side, a round of episodes that these do not fill is
            explored in one process, after learning.
        seed: of the environment, the network and the exploration.
        hyperparameters: that differ from the algorithm's own, see `with_overrides`, and from
            FOR_MULTIPLE_NETWORKS.
        initial_policy: a policy to go on from, instead of from uniform pruning.
        n_envs: processes that run episodes side by side, see `vectorized`; results depend on it.
        cluster: address of the Ray cluster whose processes are used, None for this machine's own.
        device: where the policy network lives; it is small, so a CPU serves best.
        tensorboard_log: the folder that gets the run's folder, or None.
        progress: show a bar on standard error.
        log: gets each episode, and from an earlier, interrupted run knows what need not be evaluated again.
        uniform: what uniform pruning came to, for TensorBoard to set the best plan against.
        on_episode: called after each episode; what it raises ends the run.
        checkpoint: the folder that keeps the run after updates, or None.
        resume: go on from `checkpoint` if a run was kept there, else begin.

    Raises:
        UnknownAlgorithmError: there is no such algorithm.
        HyperparameterError: it has no such hyper-parameter.
        PolicyError: the initial policy is of another algorithm.
        CheckpointError: the checkpoint is damaged, of another run, or already has as many episodes.
        AgentError: fewer than one episode or environment.
    """
    require_episodes(episodes)
    spec, overrides = ALGORITHMS[algorithm], hyperparameters or {}
    settings = with_overrides(spec, overrides)
    environment = episodic_environment(env)
    if environment.networks > 1 and issubclass(spec.model_class, PPO):
        settings = with_overrides(spec, {**FOR_MULTIPLE_NETWORKS, **overrides})
    if initial_policy is not None:
        settings = fitting_hyperparameters(initial_policy, algorithm, settings, overridden=overrides)
    identity = {
        "algorithm": algorithm,
        "seed": seed,
        "hyperparameters": settings,
        "initial policy": initial_policy and initial_policy.digest,
        "environments": n_envs,
        "groups": list(environment.group_names),
        "observation": observation_schema(env),
    }
    kept = (
        read_checkpoint(checkpoint, run=identity, history=EpisodeHistory.from_dict)
        if resume and checkpoint
        else None
    )
    if kept and kept.history.episodes >= episodes:
        raise CheckpointError(
            f"{checkpoint} already holds {kept.history.episodes} episodes of {episodes} in all; ask for more"
        )
    if log is not None:
        log.take_up(environment, algorithm, kept.history.episodes if kept else 0)
    envs = vectorized(env, n_envs=n_envs, cluster=cluster)
    try:
        rounds = RolloutSchedule(len(environment.group_names), environment.networks, n_envs)
        run = _begin(identity, env, envs, rounds, kept, initial_policy, device, tensorboard_log)
        listeners: list[Callable[[EpisodeResult], None]] = [on_episode] if on_episode else []
        if log is not None:  # first, so that nothing another listener does can lose the episode
            listeners.insert(0, partial(log.append, algorithm))
        labels = {"algorithm": algorithm, "seed": seed, **settings}
        board = TensorBoardCallback(run.history, labels, log=log, uniform=uniform)
        return _spend(
            run, env, episodes, board, listeners, progress=progress, checkpoint=checkpoint, resume=resume
        )
    finally:
        envs.close()


def _begin(
    identity: dict[str, Any],
    env: GymEnv,
    envs: VecEnv,
    rounds: RolloutSchedule,
    kept: Checkpoint[EpisodeHistory] | None,
    initial_policy: Policy | None,
    device: str,
    tensorboard_log: Path | None,
) -> _Run:
    """Return a run at its beginning, or as a checkpoint kept it."""
    spec, environment = ALGORITHMS[identity["algorithm"]], episodic_environment(env)
    if kept:
        model = kept.restore(spec.model_class, envs, device=device, tensorboard_log=tensorboard_log)
    else:
        model = spec.make(
            envs,
            rounds,
            hyperparameters=identity["hyperparameters"],
            seed=identity["seed"],
            device=device,
            tensorboard_log=tensorboard_log,
        )
        if initial_policy is not None:
            _begin_as_(model, initial_policy, env, seed=identity["seed"])
    if isinstance(model, DynaPPO):
        model.use_surrogates_of_(environment)
    if tensorboard_log is None:
        log_nowhere_(model)
    history = kept.history if kept else EpisodeHistory(identity["groups"])
    return _Run(identity, envs, rounds, model, history)


def _begin_as_(model: BaseAlgorithm, policy: Policy, env: GymEnv, *, seed: int) -> None:
    """Have an untrained model decide as a policy does."""
    if model.policy_kwargs["net_arch"] == policy.description["shape"]["net_arch"]:
        policy.load_into_(model.policy)
    else:
        student, teacher = model.policy, policy.build(env)
        assert isinstance(student, ActorCriticPolicy)
        assert isinstance(teacher, ActorCriticPolicy)
        imitate_(student, teacher, episodic_environment(env), seed=seed)


def _spend(
    run: _Run,
    env: GymEnv,
    episodes: int,
    board: TensorBoardCallback,
    listeners: Sequence[Callable[[EpisodeResult], None]],
    *,
    progress: bool,
    checkpoint: Path | None,
    resume: bool,
) -> LearningResult:
    """Spend all episodes but one on learning, the last on what was learned."""
    # environments that step together end together, so what does not fill a round is left for later
    last = (episodes - 1) // run.rounds.n_envs * run.rounds.n_envs
    identity = run.identity
    with EpisodeBar(identity["algorithm"], episodes=episodes, shown=progress, history=run.history) as bar:
        counter = EpisodeCallback(run.history, [*listeners, board.write_episode, bar.show], last=last)
        callbacks: list[BaseCallback] = [counter, board]
        if checkpoint:
            save = partial(
                save_checkpoint, checkpoint, run.model, run=identity, history=run.history, env=run.envs
            )
            callbacks.append(CheckpointCallback(run.history, save))
        try:
            steps = last * run.rounds.steps // run.rounds.networks
            run.model.learn(
                max(0, steps - run.history.steps),
                callbacks,
                log_interval=1,
                tb_log_name=identity["algorithm"],
                reset_num_timesteps=not goes_on_in_curves(run.model, identity["algorithm"], resume=resume),
            )
            # seeded: beside several processes, this one's environment has had no seed yet
            for number in range(episodes - 1 - last):
                counter.announce(run_episode(env, exploring(run.model), seed=identity["seed"] + number))
            best = run.history.best
            final = run_episode(env, deterministic(run.model), seed=identity["seed"])
            counter.announce(final)
            board.write_overview()
        except KeyboardInterrupt:
            raise  # perhaps out of the log's own lock, where closing waits for minutes; all is flushed
        except BaseException:
            board.close()
            raise
        board.close()
    return LearningResult(run.model, best or final, final, run.history.episodes)
