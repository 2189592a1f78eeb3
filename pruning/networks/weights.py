"""Read a state dict from an untrusted file, without running any of its code, and check it before use."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from prunegym.pruning.errors import WeightsError, raise_machine_failure

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_LISTED = 5  # names in a message; a wrong architecture misses hundreds


def load_weights_(model: nn.Module, path: Path) -> None:
    """Load the state dict in `path` into `model`, in place; after any error the model is as before.

    The file may be `.safetensors` or what `torch.save` wrote, bare or wrapped in `{'state_dict': ...}`,
    with or without `module.` before each name. BatchNorm's `num_batches_tracked`, which old files lack
    and inference never reads, may be missing; all else must fit.

    Raises:
        WeightsError: the file is missing, damaged or asks for code; it is no state dict; names or shapes do
            not fit; a value is NaN or infinite, or a running variance negative.
    """
    own = model.state_dict()
    state = _state_dict(_read(path), path)
    if not any(name.startswith("module.") for name in own):  # else it is the model's own, not DataParallel's
        state = {name.removeprefix("module."): value for name, value in state.items()}
    _check_fit(state, own, path)
    _check_values(state, own, path)
    own.update(state)  # in its own dictionary, which carries the version that some modules ask for
    model.load_state_dict(own)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            return read_tensors(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the file's pickle protocol and the like
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "unsupported" in str(error).lower():
            raise WeightsError(
                f"{path} holds more than tensors, and loading it could run its code; "
                "save the state dict alone: torch.save(model.state_dict(), FILE)"
            ) from error
        raise _damaged(path) from error
    except Exception as error:  # damaged files fail in a dozen ways, KeyError among them
        raise_machine_failure(error, reading=path)
        raise _damaged(path) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a file of safetensors.

    Raises:
        OSError: it cannot be opened.
        SafetensorError: it is damaged.
    """
    path.open("rb").close()  # safetensors takes a file that it may not open for a missing one
    return load_file(path)


def _damaged(path: Path) -> WeightsError:
    return WeightsError(
        f"{path} is truncated, damaged, or no weights file; expected .safetensors or what torch.save wrote"
    )


def _state_dict(data: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(data, Mapping) and isinstance(data.get(wrapper), Mapping):
            data = data[wrapper]
    if not isinstance(data, Mapping):
        raise WeightsError(f"{path} holds a {type(data).__name__}, not a state dict (names to tensors)")
    strange = [key for key, value in data.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if strange or not data:
        content = f"entries that are no tensors: {_some(strange)}" if strange else "nothing"
        raise WeightsError(f"{path} is not a state dict (names to tensors): it holds {content}")
    return dict(data)


def _check_fit(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    parts = [f"missing: {_some(missing)}"] * bool(missing) + [f"unexpected: {_some(unexpected)}"] * bool(
        unexpected
    )
    if parts:
        raise WeightsError(f"{path} does not fit the network; {'; '.join(parts)}")
    wrong = [
        f"{name} is {list(value.shape)}, the network has {list(own[name].shape)}"
        for name, value in state.items()
        if value.shape != own[name].shape
    ]
    if wrong:
        raise WeightsError(f"{path} does not fit the network; shapes differ: {_some(wrong)}")


def _check_values(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    for name, value in state.items():
        stored = value.to(own[name].dtype)  # a float64 may become infinite on the way
        if not torch.isfinite(stored).all():
            raise WeightsError(f"{path}: {name} holds NaN or infinity; the training that wrote it diverged")
        if name.endswith("running_var") and (stored < 0).any():
            raise WeightsError(
                f"{path}: {name} holds a negative variance ({stored.min():g}); the file is damaged"
            )


def _some(names: Collection[object]) -> str:
    shown = ", ".join(str(name) for name in list(names)[:_LISTED])
    rest = len(names) - _LISTED
    return f"{shown} and {rest} more" if rest > 0 else shown
