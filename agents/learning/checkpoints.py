"""Checkpoints of one's own run: what it takes to go on as if nothing had happened.

A folder holds `state.json` and the model archive it names. The archive is written first and `state.json`
replaced last, so that whenever the process dies the folder holds one whole checkpoint, the old or the new.
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
from prunegym.pruning.errors import one_line

STATE = "state.json"


class History(Protocol):
    """What a run has seen so far."""

    @property
    def episodes(self) -> int:
        """How many episodes have ended."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, fit for JSON."""


H = TypeVar("H", bound=History)


@dataclass(frozen=True)
class Checkpoint(Generic[H]):
    """A run as it stood after an update."""

    archive: Path  # Stable-Baselines3's own: policy, optimiser, counters
    history: H
    random: Mapping[str, Any]

    def restore(
        self,
        model_class: type[BaseAlgorithm],
        env: VecEnv,
        *,
        device: str,
        tensorboard_log: Path | None,
    ) -> BaseAlgorithm:
        """Return the model with its optimiser and counters, and set all random states back.

        Raises:
            CheckpointError: the archive is damaged.
        """
        log = str(tensorboard_log) if tensorboard_log else None
        try:
            model = model_class.load(self.archive, env, device=device, tensorboard_log=log)
            if isinstance(model, OffPolicyAlgorithm):
                # opened here: given a path, Stable-Baselines3 leaves the file open where it cannot be read
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
    """Write a checkpoint that takes the place of the last one in one step.

    Args:
        folder: where; made if need be.
        model: the model between two rollouts.
        run: what identifies the run, plain data.
        history: its episodes so far.
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
    """Return the checkpoint in `folder`, or None if none was written there yet.

    Args:
        folder: where `save_checkpoint` wrote.
        run: what identifies the run to go on with.
        history: what makes a history of its plain data.

    Raises:
        CheckpointError: it is damaged, or was made by another run than `run` describes.
    """
    if not (folder / STATE).exists():
        return None
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        checkpoint = Checkpoint(folder / state["model"], history(state["history"]), state["random"])
        saved: Mapping[str, Any] = state["run"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
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


def _of_their_own(env: VecEnv) -> list[int]:
    """Return the environments that have a state of their own, not one in common with others."""
    return list(getattr(env, "of_their_own", range(env.num_envs)))


def _random_states(model: BaseAlgorithm, env: VecEnv) -> dict[str, Any]:
    _, keys, *rest = cast(tuple[Any, ...], np.random.get_state())  # noqa: NPY002  Stable-Baselines3 draws from it
    return {
        "environments": env.env_method("episode_start", indices=_of_their_own(env)),
        "warm-up": model.action_space.np_random.bit_generator.state,
        "numpy": [keys.tolist(), *rest],
        "torch": torch.get_rng_state().tolist(),
        # a GPU that is not in use stays so: processes may be forked later
        "cuda": [state.tolist() for state in torch.cuda.get_rng_state_all()]
        if torch.cuda.is_initialized()
        else [],
    }


def _restore_random(states: Mapping[str, Any], model: BaseAlgorithm, env: VecEnv) -> None:
    for number, state in enumerate(states["environments"]):
        env.env_method("restart_from", state, indices=number)
    model.action_space.np_random.bit_generator.state = states["warm-up"]
    keys, *rest = states["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(torch.tensor(states["torch"], dtype=torch.uint8))
    for number, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(torch.tensor(state, dtype=torch.uint8), number)
