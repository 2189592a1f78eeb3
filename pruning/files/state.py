"""Files with the state of a run that can go on: tensors and plain data, so that reading one runs no code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from prunegym.pruning.files.writing import written_whole
from prunegym.pruning.machine_failures import raise_machine_failure

RECORD = "record"  # the tensor that holds the plain data, as JSON in UTF-8: [bytes]
CHECKSUM = "sha256"  # entry of the file's metadata


def write_state(path: Path, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write plain data and tensors to one safetensors file, which replaces the last one at once.

    Args:
        path: the file.
        record: plain data, fit for JSON.
        tensors: name -> tensor of any shape and type; "record" is not among the names.
    """
    text = json.dumps(record).encode()
    # copies, as the format allows neither views nor one tensor under two names
    held = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    held[RECORD] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    with written_whole(path) as temporary:
        save_file(held, temporary, metadata={CHECKSUM: _checksum(held)})


def read_state(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """Return what `write_state` wrote: the plain data, and the tensors on the CPU.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is damaged, or no such file.
    """
    path.open("rb").close()  # safetensors takes a file that it may not open for a missing one
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 no mapping
            expected = (file.metadata() or {}).get(CHECKSUM)
    except OSError:
        raise
    except Exception as error:  # safetensors raises its own kind, and others by where a file is damaged
        raise_machine_failure(error, reading=path)
        raise ValueError(f"it is no safetensors file: {error}") from error
    if RECORD not in tensors or expected != _checksum(tensors):
        raise ValueError("its content does not have the checksum that was written with it")
    text = tensors.pop(RECORD).numpy().tobytes()
    try:
        return json.loads(text), tensors
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return what an optimizer remembers of each parameter, such as "0.exp_avg" of the first one."""
    return {
        f"{index}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
        if value is not None
    }


def restore_optimizer_(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Set an optimizer of the same parameters back to what `optimizer_tensors` returned; rates stay.

    Raises:
        IndexError, ValueError: a tensor belongs to none of the parameters, or is not of its shape.
    """
    groups = optimizer.state_dict()["param_groups"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, entry = name.partition(".")
        index = int(number)
        shape = () if entry == "step" else parameters[index].shape
        if tensor.shape != shape:
            raise ValueError(f"the optimizer has no {name} of shape {list(tensor.shape)}")
        state.setdefault(index, {})[entry] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under names that begin with `PREFIX/`."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `PREFIX/`, without that."""
    start = f"{prefix}/"
    return {name.removeprefix(start): one for name, one in tensors.items() if name.startswith(start)}


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(repr((name, str(tensor.dtype), list(tensor.shape))).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
