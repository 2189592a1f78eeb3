"""Learn a policy that decides for each input, by PPO on many short episodes with a price on multiply-adds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HParam
from torch import Tensor, nn
from tqdm import tqdm

from prunegym.agents.learning.algorithms import Algorithm, RolloutSchedule, on_policy, with_overrides
from prunegym.agents.learning.checkpoints import Checkpoint, read_checkpoint, save_checkpoint
from prunegym.agents.learning.tensorboard import (
    continues_curves,
    flatten,
    hide_events_from,
    log_nowhere_,
    tensorboard_formats,
)
from prunegym.agents.per_input.vector_adapter import GymVectorAdapter
from prunegym.agents.rollout import require_episodes
from prunegym.pruning.machine_failures import written_to

PER_INPUT = Algorithm("per-input", PPO, on_policy)
SAVE_EVERY = 20  # updates
INPUT_METRICS = ("macs", "agrees", "loss", "reference")  # in the infos of every input


class InputEnvironment(Protocol):
    """A vector environment of inputs: what it must offer in addition to Gymnasium's own interface.

    The infos of its last step hold INPUT_METRICS, [inputs] each, and `ratios`, [inputs, gates].
    """

    gate_names: tuple[str, ...]
    observation_names: tuple[str, ...]
    observation_version: int
    budget: float  # share of the dense network's multiply-adds, on average over inputs
    price: float  # of multiply-adds worth the whole budget, in units of the reward

    def marginal_price(self) -> float:
        """Return the initial price."""


@dataclass
class InputHistory:
    """The records of the updates of one run, in order; a checkpoint keeps it as JSON."""

    updates: list[dict[str, float]] = field(default_factory=list)

    @property
    def episodes(self) -> int:
        """Number of inputs decided so far."""
        return int(self.updates[-1]["episodes"]) if self.updates else 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, fit for JSON."""
        return {"updates": self.updates}


@dataclass(frozen=True)
class InputPolicy:
    """A learned policy and the history of its run."""

    model: BaseAlgorithm
    history: InputHistory

    @property
    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each layer of the network for the most likely action, with tanh in between."""
        policy: Any = self.model.policy
        modules = [*policy.mlp_extractor.policy_net, policy.action_net]
        return [
            (module.weight.detach().clone(), module.bias.detach().clone())
            for module in modules
            if isinstance(module, nn.Linear)
        ]


@dataclass(frozen=True)
class PerInputRecording:
    """Files, callback and progress bar of learning a policy for inputs, and whether to resume."""

    tensorboard: Path | None = None  # parent of the folder that gets this run's curves
    checkpoint: Path | None = None  # the folder that keeps the run every SAVE_EVERY updates
    resume: bool = False  # continue from `checkpoint` if it holds a run, else begin
    progress: bool = False  # show a bar on standard error
    on_update: Callable[[dict[str, float]], None] | None = None  # an exception in it ends the run


def learn_per_input(
    env: Any,
    *,
    episodes: int,
    seed: int,
    hyperparameters: Mapping[str, Any] | None = None,
    device: str = "cpu",
    recording: PerInputRecording = PerInputRecording(),
) -> InputPolicy:
    """Learn a policy by PPO, with a price on multiply-adds that is adapted until they meet the budget.

    Args:
        env: a vector environment of inputs, see InputEnvironment.
        episodes: number of inputs to decide, rounded up to whole updates.
        seed: seed of the order of inputs, the policy network and the exploration.
        hyperparameters: values that replace those in `per-input.yaml`, see `with_overrides`.
        device: device of the policy network, which is small, so that a CPU is fastest.
        recording: what is written to disk and shown; `on_update` is called with the record of each update.

    Raises:
        HyperparameterError: there is no such hyper-parameter.
        CheckpointError: the checkpoint is damaged, or of another run.
        AgentError: fewer than one episode.
    """
    require_episodes(episodes)
    settings = with_overrides(PER_INPUT, hyperparameters or {})
    envs = GymVectorAdapter(env)
    identity = {
        "seed": seed,
        "episodes": episodes,  # the learning rate falls with them
        "hyperparameters": settings,
        "gates": list(env.gate_names),
        "observation": {"version": env.observation_version, "names": list(env.observation_names)},
        "budget": env.budget,
        "inputs at once": envs.num_envs,
    }
    checkpoint: Checkpoint[InputHistory] | None = None
    if recording.resume and recording.checkpoint:
        checkpoint = read_checkpoint(
            recording.checkpoint, run=identity, history=lambda data: InputHistory(data["updates"])
        )
    model = PER_INPUT.make(
        envs,
        RolloutSchedule(len(env.gate_names), 1, envs.num_envs),
        hyperparameters={name: value for name, value in settings.items() if name != "price_rate"},
        seed=seed,
        device=device,
        tensorboard_log=recording.tensorboard,
    )
    if checkpoint:
        checkpoint.restore_(model, envs)
    else:
        env.price = env.marginal_price()
    if recording.tensorboard is None:
        log_nowhere_(model)
    history = checkpoint.history if checkpoint else InputHistory()
    save = partial(save_checkpoint, recording.checkpoint, run=identity) if recording.checkpoint else None
    callback = _UpdateCallback(env, history, {"seed": seed, **settings}, save, recording.on_update)
    hidden = None if recording.progress else True  # None: hidden where no terminal shows it
    with (
        written_to(recording.tensorboard),
        tqdm(total=episodes, initial=history.episodes, unit="input", disable=hidden) as bar,
    ):
        callback.bar = bar
        n_steps = (episodes - history.episodes) * len(env.gate_names)
        if n_steps > 0:  # else it was interrupted after learning
            model.learn(
                n_steps,
                callback,
                log_interval=1,
                tb_log_name="per-input",
                reset_num_timesteps=not continues_curves(model, "per-input", resume=recording.resume),
            )
            if save is not None:
                save(model, history=history, env=envs)
            model.logger.close()
    return InputPolicy(model, history)


class _UpdateCallback(BaseCallback):
    """After each update: adjusts the price, extends the history and the curves, and saves a checkpoint."""

    bar: Any

    def __init__(
        self,
        env: InputEnvironment,
        history: InputHistory,
        settings: Mapping[str, Any],
        save: Callable[..., None] | None,
        on_update: Callable[[dict[str, float]], None] | None,
    ) -> None:
        super().__init__()
        self._env = env
        self._history = history
        self._settings = settings
        self._save = save
        self._on_update = on_update
        self._infos: list[Mapping[str, Any]] = []  # of the inputs since the last update

    def _on_training_start(self) -> None:
        for log in tensorboard_formats(self.logger):
            hide_events_from(log.writer, self.num_timesteps + 1)
        hparams = HParam(flatten(self._settings), {"input/agrees": 0.0, "input/macs": 0.0})
        self.logger.record("hparams", hparams, exclude=("stdout", "log", "json", "csv"))

    def _on_rollout_start(self) -> None:
        # else the records of the last update would be written after the next one, and a checkpoint lose them
        self.logger.dump(self.num_timesteps)
        # saved here and not at the end of a rollout, when Stable-Baselines3 has not learned from it yet
        updates = len(self._history.updates)
        if self._save is not None and updates and updates % SAVE_EVERY == 0:
            self._save(self.model, history=self._history, env=self.training_env)

    def _on_training_end(self) -> None:
        self.logger.dump(self.num_timesteps)

    def _on_step(self) -> bool:
        infos, rewards = self.locals["infos"], self.locals["rewards"]
        self._infos += [
            {**info, "reward": reward} for info, reward in zip(infos, rewards, strict=True) if info
        ]
        return True

    def _on_rollout_end(self) -> None:
        names = (*INPUT_METRICS, "reward")
        record = {name: float(np.mean([info[name] for info in self._infos])) for name in names}
        ratios: NDArray[np.float64] = np.mean([info["ratios"] for info in self._infos], axis=0)
        record |= {
            "episodes": self._history.episodes + len(self._infos),
            "price": self._env.price,
            "macs_std": float(np.std([info["macs"] for info in self._infos])),
        }
        for name, value in record.items():
            self.logger.record(f"input/{name}", value)
        for gate, ratio in zip(self._env.gate_names, ratios, strict=True):
            self.logger.record(f"runtime/{gate}", float(ratio))
        self._history.updates.append(record)
        self.bar.update(len(self._infos))
        self.bar.set_postfix_str(f"agrees {record['agrees']:.1%}, MACs {record['macs']:.1%}", refresh=False)
        self._infos = []
        self._env.price = max(
            0.0, self._env.price + self._settings["price_rate"] * (record["macs"] / self._env.budget - 1)
        )
        if self._on_update is not None:
            self._on_update(record)
