"""Read a state dict from an untrusted file, without running any of its code, and check it before use."""

from __future__ import annotations

import argparse
import difflib
import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from prunegym.pruning.errors import WeightsError
from prunegym.pruning.files.content import foreign_content
from prunegym.pruning.machine_failures import raise_machine_failure
from prunegym.pruning.networks.registry import NetworkSpec

logger = logging.getLogger(__name__)

FACTORY = Path("factory")  # names the weights that a user's function builds a network with
# entries in which trainers keep a state dict; the first that is there counts
_WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "net", "network", "weights", "params"),
    *("state_dict_ema", "model_ema", "ema"),
)
_COUNTERS = ("total_ops", "total_params", "n_averaged")  # left among the weights by profilers and averaging
_scalar = np.float64(0).__reduce__()[0]
# classes that trainers keep beside the weights, and that run no code when they are loaded
_HARMLESS: tuple[Any, ...] = (
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in "?bhilqBHILQefd"),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
)
_ALONE = "save the state dict alone: torch.save(model.state_dict(), FILE)"
_ASKS_FOR_CODE = ("Unsupported operand", "GLOBAL", "unrecognized function", "allowlisted")  # in torch's words
_FLOATS, _WHOLE = "of floats", "of whole numbers"
_WHOLE_TYPES = {getattr(torch, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)}
_LISTED = 5  # names in a message; a wrong architecture misses hundreds


def built_with(network: NetworkSpec, weights: Path) -> nn.Module:
    """Return a network with trained weights: those of a file or, for "factory", those that it is built with.

    Raises:
        WeightsError: see `load_weights_`; or a network that is no function of the user's has no such weights.
    """
    model = network.build()
    if weights != FACTORY or weights.exists():
        load_weights_(model, weights)
    elif ":" not in network.name:
        raise WeightsError(
            f"{network.name} is built with random weights; --weights {FACTORY} is for a function of your own"
        )
    else:
        _check_values(model.state_dict(), model.state_dict(), FACTORY)
    return model


def load_weights_(model: nn.Module, path: Path) -> None:
    """Load the state dict in `path` into `model`, in place; after any error the model is as before.

    The file may be safetensors or what `torch.save` wrote, bare or in an entry such as "state_dict" or "ema",
    with or without a prefix such as `module.` before all names. BatchNorm's `num_batches_tracked`, which old
    files lack and inference never reads, may be missing; all else must fit.

    Raises:
        WeightsError: the file is missing, damaged or asks for code; it is no state dict; names or shapes do
            not fit; a value is NaN or infinite, or a running variance negative.
    """
    own = model.state_dict()
    state = _state_dict(_read(path), path)
    state = _renamed(state, own, path)
    _check_fit(state, own, path)
    _check_values(state, own, path)
    own.update(state)  # in its own dictionary, which carries the version that some modules ask for
    model.load_state_dict(own)


def _read(path: Path) -> Any:
    if path.is_dir():
        raise WeightsError(f"{path} is a folder; name the weights file in it")
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}")
    try:
        if _is_safetensors(path):
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the file's pickle protocol and the like
            # an open file, since by its name torch would choose for itself what it is
            with path.open("rb") as file, torch.serialization.safe_globals([*_HARMLESS]):
                return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files fail in a dozen ways, KeyError among them
        raise_machine_failure(error, reading=path)
        raise WeightsError(f"{path} {_fault(path, error)}") from error


def _is_safetensors(path: Path) -> bool:
    """Return whether a file begins as safetensors does, whatever its name: a length, then a JSON object."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _fault(path: Path, error: Exception) -> str:
    """Return what is wrong with a file that cannot be loaded, and the way out."""
    if found := foreign_content(path):
        return f"is {found}"
    if "TorchScript" in str(error):
        return f"is a TorchScript archive; {_ALONE}"
    archive = zipfile.is_zipfile(path)
    if archive and not _holds_pickle(path):
        return "is a zip archive that torch.save did not write; unpack it and name the weights file in it"
    # in a pickle, an operand that torch does not support asks for more than tensors; elsewhere it is garbage
    words = _ASKS_FOR_CODE if archive or _is_pickle(path) else _ASKS_FOR_CODE[1:]
    if isinstance(error, pickle.UnpicklingError) and any(word in str(error) for word in words):
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({named[1]})" if named else ""
        return f"holds more than tensors{what}, and loading it could run its code; {_ALONE}"
    return "is truncated, damaged, or no weights file; expected safetensors or what torch.save wrote"


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == b"\x80"


def _holds_pickle(archive: Path) -> bool:
    with zipfile.ZipFile(archive) as file:
        return any(name.endswith("data.pkl") for name in file.namelist())


def _state_dict(data: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(data, Mapping) and (inner := [data[key] for key in _WRAPPERS if _is_wrapped(data, key)]):
        data = inner[0]
    if not isinstance(data, Mapping):
        raise WeightsError(f"{path} holds a {type(data).__name__}, not a state dict (names to tensors)")
    strange = [key for key, value in data.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if strange or not data:
        content = f"entries that are no tensors: {_some(strange)}" if strange else "nothing"
        raise WeightsError(f"{path} is not a state dict (names to tensors): it holds {content}")
    return dict(data)


def _is_wrapped(data: Mapping[str, Any], key: str) -> bool:
    return isinstance(data.get(key), Mapping)


def _renamed(state: dict[str, Tensor], own: Collection[str], path: Path) -> dict[str, Tensor]:
    """Return a state dict without counters, and without a prefix that is before all of its names."""
    counters = [name for name in state if name.rpartition(".")[2] in _COUNTERS and name not in own]
    if counters:
        logger.warning("%s: ignored %s, which count something and are no weights", path, _some(counters))
    state = {name: value for name, value in state.items() if name not in counters}
    shorter = state
    while not any(name in own for name in shorter):
        first = {name.partition(".")[0] for name in shorter}
        if len(first) != 1 or not all("." in name for name in shorter):
            return state
        shorter = {name.partition(".")[2]: value for name, value in shorter.items()}
    return shorter


def _neighbours(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """Return what may have become of names that are missing, for a message."""
    for name in missing:
        longer = [other for other in unexpected if other.endswith(f".{name}")]
        if longer:
            return f"; names there begin with {longer[0].removesuffix(name)!r}"
        if near := difflib.get_close_matches(name, unexpected, n=1):
            return f"; is {near[0]} there what is {name} here?"
    return ""


def _check_fit(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    parts = [f"missing: {_some(missing)}"] * bool(missing) + [f"unexpected: {_some(unexpected)}"] * bool(
        unexpected
    )
    if parts:
        near = _neighbours(missing, unexpected)
        raise WeightsError(f"{path} does not fit the network; {'; '.join(parts)}{near}")
    strange = [f"{name} is {kind}" for name, value in state.items() if (kind := _misfit(value, own[name]))]
    if strange:
        raise WeightsError(f"{path}: {_some(strange)}; save plain tensors of the network's own types")
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


def _misfit(value: Tensor, own: Tensor) -> str | None:
    """Return why a tensor cannot take the place of the network's own, or None if it can."""
    if value.is_nested or value.layout is not torch.strided:
        return "nested" if value.is_nested else "sparse"
    if value.is_meta:
        return "without values, since it was saved on the meta device"
    kind, wanted = _kind(value.dtype), _kind(own.dtype)
    # who changes the precision of a whole state dict changes that of its counters
    counter = kind == _FLOATS and wanted == _WHOLE and torch.equal(value, value.round())
    return None if kind == wanted or counter else f"{kind}, not {wanted}"


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_complex or dtype is torch.bool:
        return "complex" if dtype.is_complex else "of truth values"
    if dtype.is_floating_point:
        return _FLOATS
    return _WHOLE if dtype in _WHOLE_TYPES else "quantized"


def _some(names: Collection[object]) -> str:
    shown = ", ".join(str(name) for name in list(names)[:_LISTED])
    rest = len(names) - _LISTED
    return f"{shown} and {rest} more" if rest > 0 else shown
