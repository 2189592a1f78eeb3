"""Checkpoint files of fine-tuning, written between two epochs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from prunegym.pruning.errors import PruningError
from prunegym.pruning.files.state import prefixed, read_state, with_prefix, write_state
from prunegym.pruning.machine_failures import raise_machine_failure
from prunegym.pruning.training.loop import EpochRecord, TrainingLoop


@dataclass(frozen=True)
class Checkpoint:
    """A run of fine-tuning between two epochs, as read from its file."""

    path: Path
    record: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def restore_(self, model: nn.Module, loop: TrainingLoop) -> list[EpochRecord]:
        """Set network, optimizer, schedule and random state back; return the epochs that are over.

        Raises:
            PruningError: the file is damaged.
        """
        try:
            history = [_epoch(**epoch) for epoch in self.record["history"]]
            loop.restore_(self.record["loop"], with_prefix("loop", self.tensors))
            model.load_state_dict(with_prefix("model", self.tensors))
            return history
        except Exception as error:  # a damaged file fails in a dozen ways, by where it is damaged
            raise_machine_failure(error, reading=self.path)
            raise _damaged(self.path) from error


def fingerprint(model: nn.Module) -> str:
    """Return a hash of the weights: a checkpoint of another network, cut otherwise, must not be loaded."""
    state = {name: tensor.detach().contiguous().clone() for name, tensor in model.state_dict().items()}
    return hashlib.sha256(save(state)).hexdigest()


def write_checkpoint(
    path: Path, run: Mapping[str, Any], model: nn.Module, loop: TrainingLoop, history: Sequence[EpochRecord]
) -> None:
    """Save a run after an epoch; `run` identifies it, plain data."""
    plain, tensors = loop.state()
    record = {"run": run, "loop": plain, "history": [asdict(epoch) for epoch in history]}
    write_state(path, record, prefixed("model", model.state_dict()) | prefixed("loop", tensors))


def read_checkpoint(path: Path, run: Mapping[str, Any]) -> Checkpoint | None:
    """Return the checkpoint in a file, None if there is none.

    Raises:
        PruningError: it is damaged, or of another run.
    """
    if not path.exists():
        return None
    try:
        record, tensors = read_state(path)
        now = json.loads(json.dumps(run))
        changed = [name for name in now if record["run"][name] != now[name]]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path) from error
    if changed:
        raise PruningError(
            f"{path} was made with other {' and '.join(changed)}; repeat them, or start afresh"
        )
    return Checkpoint(path, record, tensors)


def _epoch(number: int, loss: float, learning_rate: float, accuracy: float | None) -> EpochRecord:
    checked = None if accuracy is None else float(accuracy)
    return EpochRecord(int(number), float(loss), float(learning_rate), checked)


def _damaged(path: Path) -> PruningError:
    return PruningError(f"{path} is truncated, damaged, or no checkpoint; start afresh")
