"""Checkpoints, from which a run continues with the same results as if it had not been interrupted.

A checkpoint is one file of tensors and plain data. Nothing in it is code: the model is built anew from the
flags of the run, and gets back its weights, optimisers, replay buffer, counters and random numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from torch.optim import Optimizer

from prunegym.agents.errors import CheckpointError
from prunegym.pruning.errors import one_line
from prunegym.pruning.files.state import (
    optimizer_tensors,
    prefixed,
    read_state,
    restore_optimizer_,
    with_prefix,
    write_state,
)
from prunegym.pruning.machine_failures import raise_machine_failure

STATE = "state.safetensors"
COUNTERS = ("num_timesteps", "_episode_num", "_n_updates", "_current_progress_remaining")
REPLAY = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class History(Protocol):
    """The history of a run, which a checkpoint keeps as plain data."""

    @property
    def episodes(self) -> int:
        """Number of finished episodes."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, fit for JSON."""


@runtime_checkable
class KeepsState(Protocol):
    """An algorithm that keeps more between rollouts than Stable-Baselines3's own do."""

    def run_state(self) -> dict[str, Any]:
        """Return it as plain data, fit for JSON."""

    def restore_run_state_(self, state: Mapping[str, Any]) -> None:
        """Restore what `run_state` returned."""


H = TypeVar("H", bound=History)


@dataclass(frozen=True)
class Checkpoint(Generic[H]):
    """The state of a run after an update."""

    path: Path
    history: H
    record: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def restore_(self, model: BaseAlgorithm, env: VecEnv) -> None:
        """Set an untrained model of the run, and all random number generators, back to this state.

        Raises:
            CheckpointError: the checkpoint is damaged.
        """
        try:
            _restore_model_(model, self.record["model"], self.tensors)
            _restore_random(self.record["random"], model, env)
        except Exception as error:  # a damaged file fails in a dozen ways, by where it is damaged
            raise_machine_failure(error, reading=self.path)
            raise _damaged(self.path, error) from error


def save_checkpoint(
    folder: Path,
    model: BaseAlgorithm,
    *,
    run: Mapping[str, Any],
    history: History,
    env: VecEnv,
) -> None:
    """Write a checkpoint, which atomically replaces the last one.

    Args:
        folder: the folder of the checkpoint; it is created if necessary.
        model: the model between two rollouts.
        run: the settings that identify the run, as plain data.
        history: the episodes so far.
        env: the training environments, whose next episodes have been reset but not stepped.
    """
    plain, tensors = _model_state(model)
    record = {
        "run": run,
        "model": plain,
        "history": history.to_dict(),
        "random": _random_states(model, env),
    }
    write_state(folder / STATE, record, tensors)


def read_checkpoint(
    folder: Path, *, run: Mapping[str, Any], history: Callable[[Any], H]
) -> Checkpoint[H] | None:
    """Return the checkpoint in `folder`, or None if there is none yet.

    Args:
        folder: the folder that `save_checkpoint` wrote.
        run: the settings that identify the run to continue.
        history: makes a history from its plain data.

    Raises:
        CheckpointError: the checkpoint is damaged, or its run has other settings than `run`.
    """
    path = folder / STATE
    if not path.exists():
        return None
    try:
        record, tensors = read_state(path)
        checkpoint = Checkpoint(path, history(record["history"]), record, tensors)
        saved = dict(record["run"])
    except Exception as error:  # a damaged file fails in a dozen ways, by where it is damaged
        raise_machine_failure(error, reading=path)
        raise _damaged(path, error) from error
    for key, value in run.items():
        if saved.get(key) != value:
            raise CheckpointError(
                f"{folder} was made with {key} {saved.get(key)!r}, this run has {value!r}; "
                "resume with what it was started with, or start afresh"
            )
    return checkpoint


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"cannot read {path}: {one_line(error)}; remove {path.parent} and resume: "
        "it learns anew, plans on file are not evaluated again"
    )


def _model_state(model: BaseAlgorithm) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return all of a model that changes between rollouts: plain data, and tensors."""
    plain: dict[str, Any] = {name: getattr(model, name) for name in COUNTERS}
    # without the times of day at which they ended: equal runs have equal checkpoints
    plain["episodes"] = [{"r": one["r"], "l": one["l"]} for one in model.ep_info_buffer or ()]
    tensors: dict[str, Tensor] = {}
    networks, variables = model._get_torch_save_params()
    for name in networks:
        part = attrgetter(name)(model)
        state = optimizer_tensors(part) if isinstance(part, Optimizer) else part.state_dict()
        tensors |= prefixed(name, state)
    tensors |= {name: attrgetter(name)(model).detach() for name in variables}
    if isinstance(model, OffPolicyAlgorithm):
        buffer = model.replay_buffer
        assert buffer is not None
        plain["replay"] = {"pos": buffer.pos, "full": buffer.full}
        rows = buffer.size()
        arrays = {name: torch.from_numpy(getattr(buffer, name)[:rows]) for name in REPLAY}
        tensors |= prefixed("replay", arrays)
    if isinstance(model, KeepsState):
        plain["own"] = model.run_state()
    return plain, tensors


def _restore_model_(model: BaseAlgorithm, plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Set an untrained model back to what `_model_state` returned."""
    for name in COUNTERS:
        setattr(model, name, type(getattr(model, name))(plain[name]))
    model.ep_info_buffer = deque(plain["episodes"], maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(maxlen=model._stats_window_size)
    networks, variables = model._get_torch_save_params()
    for name in networks:
        part, state = attrgetter(name)(model), with_prefix(name, tensors)
        if isinstance(part, Optimizer):
            restore_optimizer_(part, state)
        else:
            part.load_state_dict(state)
    with torch.no_grad():
        for name in variables:
            attrgetter(name)(model).copy_(tensors[name])
    if isinstance(model, OffPolicyAlgorithm):
        buffer = model.replay_buffer
        assert buffer is not None
        _restore_replay_(buffer, plain["replay"], with_prefix("replay", tensors))
    if isinstance(model, KeepsState):
        model.restore_run_state_(plain["own"])


def _restore_replay_(buffer: ReplayBuffer, plain: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    buffer.pos, buffer.full = int(plain["pos"]), bool(plain["full"])
    if not 0 <= buffer.pos < buffer.buffer_size:
        raise ValueError(f"a replay buffer of {buffer.buffer_size} steps has no step {buffer.pos}")
    for name in REPLAY:
        getattr(buffer, name)[: buffer.size()] = tensors[name].numpy()


def _random_states(model: BaseAlgorithm, env: VecEnv) -> dict[str, Any]:
    _, keys, *rest = cast(tuple[Any, ...], np.random.get_state())  # noqa: NPY002  Stable-Baselines3 draws from it
    stateful = list(getattr(env, "stateful_indices", range(env.num_envs)))
    return {
        "environments": env.env_method("episode_start", indices=stateful),
        "warm-up": model.action_space.np_random.bit_generator.state,
        "numpy": [keys.tolist(), *rest],
        "torch": torch.get_rng_state().tolist(),
        # CUDA is not initialised for this: processes may be forked later
        "cuda": [state.tolist() for state in torch.cuda.get_rng_state_all()]
        if torch.cuda.is_initialized()
        else [],
    }


def _restore_random(states: Mapping[str, Any], model: BaseAlgorithm, env: VecEnv) -> None:
    for index, state in enumerate(states["environments"]):
        env.env_method("restart_from", state, indices=index)
    model.action_space.np_random.bit_generator.state = states["warm-up"]
    keys, *rest = states["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(torch.tensor(states["torch"], dtype=torch.uint8))
    for device, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(torch.tensor(state, dtype=torch.uint8), device)
