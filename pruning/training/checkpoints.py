"""Checkpoint files of fine-tuning, written between two epochs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from prunegym.pruning.errors import PruningError, raise_machine_failure
from prunegym.pruning.files import written_whole
from prunegym.pruning.training.loop import EpochRecord, TrainingLoop

Checkpoint = Mapping[str, Any]


def fingerprint(model: nn.Module) -> str:
    """Return a hash of the weights: a checkpoint of another network, cut otherwise, must not be loaded."""
    state = {name: tensor.detach().contiguous().clone() for name, tensor in model.state_dict().items()}
    return hashlib.sha256(save(state)).hexdigest()


def write_checkpoint(
    path: Path, run: Mapping[str, Any], model: nn.Module, loop: TrainingLoop, history: Sequence[EpochRecord]
) -> None:
    """Save a run after an epoch; `run` identifies it, plain data."""
    state = {
        "run": run,
        "model": model.state_dict(),
        "loop": loop.state_dict(),
        "history": [asdict(epoch) for epoch in history],
    }
    # to an open file, as torch does not say why it cannot write one that it opened
    with written_whole(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)


def read_checkpoint(path: Path, run: Mapping[str, Any]) -> Checkpoint | None:
    """Return the checkpoint in a file, None if there is none.

    Raises:
        PruningError: it is damaged, or of another run.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        saved = state["run"]
        changed = [name for name in run if saved[name] != run[name]]
    except Exception as error:  # a damaged file fails in a dozen ways, by where it is damaged
        raise_machine_failure(error, reading=path)
        raise PruningError(f"{path} is truncated, damaged, or no checkpoint; start afresh") from error
    if changed:
        raise PruningError(
            f"{path} was made with other {' and '.join(changed)}; repeat them, or start afresh"
        )
    return state


def restore_(saved: Checkpoint, model: nn.Module, loop: TrainingLoop) -> list[EpochRecord]:
    """Set network, optimizer, schedule and random state back; return the epochs that are over."""
    model.load_state_dict(saved["model"])
    loop.load_state_dict(saved["loop"])
    return [EpochRecord(**epoch) for epoch in saved["history"]]
