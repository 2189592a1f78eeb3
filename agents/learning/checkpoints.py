"""Checkpoints, from which a run continues with the same results as if it had not been interrupted.

A folder holds `state.json` and the model archive that it names. The archive is written first and `state.json`
replaced last, so that the folder holds a whole checkpoint, the old or the new one, whenever the process dies.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import PickleError
from typing import Any, Generic, Protocol, TypeVar, cast

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from prunegym.agents.errors import CheckpointError
from prunegym.pruning.errors import one_line, raise_machine_failure

STATE = "state.json"


class History(Protocol):
    """The history of a run, which a checkpoint keeps as plain data."""

    @property
    def episodes(self) -> int:
        """Number of finished episodes."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, fit for JSON."""


H = TypeVar("H", bound=History)


@dataclass(frozen=True)
class Checkpoint(Generic[H]):
    """The state of a run after an update."""

    archive: Path  # written by Stable-Baselines3: policy, optimiser, counters
    history: H
    random: Mapping[str, Any]  # states of all random number generators

    def restore(
        self,
        model_class: type[BaseAlgorithm],
        env: VecEnv,
        *,
        device: str,
        tensorboard_log: Path | None,
    ) -> BaseAlgorithm:
        """Return the model with its optimiser and counters, and restore all random number generators.

        Raises:
            CheckpointError: the archive is damaged.
        """
        log = str(tensorboard_log) if tensorboard_log else None
        try:
            model = model_class.load(self.archive, env, device=device, tensorboard_log=log)
            if isinstance(model, OffPolicyAlgorithm):
                # opened here, as Stable-Baselines3 does not close a damaged file that it opened itself
                with _replay_of(self.archive).open("rb") as file:
                    model.load_replay_buffer(file)
        except (
            OSError,
            zipfile.BadZipFile,
            ValueError,
            KeyError,
            RuntimeError,
            EOFError,
            PickleError,
        ) as error:
            raise_machine_failure(error, reading=self.archive)
            raise _damaged(self.archive, error) from error
        _restore_random(self.random, model, env)
        return model


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
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"model-{history.episodes}.zip"
    partial = folder / "partial.zip"
    model.save(partial)
    os.replace(partial, archive)
    if isinstance(model, OffPolicyAlgorithm):
        model.save_replay_buffer(folder / "partial.pkl")
        os.replace(folder / "partial.pkl", _replay_of(archive))
    state = {
        "run": run,
        "model": archive.name,
        "history": history.to_dict(),
        "random": _random_states(model, env),
    }
    partial = folder / f"{STATE}.partial"
    partial.write_text(json.dumps(state), encoding="utf-8")
    os.replace(partial, folder / STATE)
    for older in set(folder.glob("model-*")) - {archive, _replay_of(archive)}:
        older.unlink()


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
    if not (folder / STATE).exists():
        return None
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        checkpoint = Checkpoint(folder / state["model"], history(state["history"]), state["random"])
        saved: Mapping[str, Any] = state["run"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise_machine_failure(error)
        raise _damaged(folder / STATE, error) from error
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


def _replay_of(archive: Path) -> Path:
    return archive.with_suffix(".pkl")


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
