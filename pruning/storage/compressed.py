"""Save a compressed network as a folder of safetensors and JSON; load it without running foreign code."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import nn

from prunegym.pruning.apply import rebuild_
from prunegym.pruning.errors import PruningError, one_line
from prunegym.pruning.evaluation.evaluate import Evaluation
from prunegym.pruning.files.content import read_described
from prunegym.pruning.files.plain_data import read_json, version_of, write_json
from prunegym.pruning.files.writing import folder_written_whole
from prunegym.pruning.machine_failures import raise_machine_failure
from prunegym.pruning.networks.registry import MAX_IMAGE_NUMBERS, NetworkSpec, resolve_network
from prunegym.pruning.networks.weights import load_weights_
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.runtime.gates import GateSite, gate_sites
from prunegym.pruning.surgery.cutting import attempt
from prunegym.pruning.techniques import TECHNIQUES, check_amounts

FORMAT_VERSION = 4
WEIGHTS, STRUCTURE = "model.safetensors", "structure.json"
_ENTRIES = {
    *("version", "network", "input_shape", "mean", "std", "data", "biases", "techniques"),
    *("weights_sha256", "plan", "evaluation"),
}


@dataclass(frozen=True)
class Manifest:
    """The entries of `structure.json` beside the shapes."""

    network: str  # a name that `resolve_network` understands
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    data: str  # the images of the evaluation, as `load_splits` understands them
    plan: CompressionPlan
    evaluation: Evaluation  # on the test images


class CompressedNetwork(Protocol):
    """A compressed network with its records: just made, or loaded."""

    @property
    def model(self) -> nn.Module:
        """The network."""

    @property
    def records(self) -> Mapping[str, Any]:
        """Technique -> what it did to the dense network, as plain data."""

    @property
    def biases(self) -> tuple[str, ...]:
        """The layers that gained a bias."""


def save_compressed(folder: Path, compressed: CompressedNetwork, manifest: Manifest) -> None:
    """Write weights and structure; the folder appears whole or not at all."""
    tensors = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in compressed.model.state_dict().items()
    }
    with folder_written_whole(folder) as fresh:
        save_file(tensors, fresh / WEIGHTS)
        record = {
            "version": FORMAT_VERSION,
            "network": manifest.network,
            "input_shape": list(manifest.input_shape),
            "mean": list(manifest.mean),
            "std": list(manifest.std),
            "data": manifest.data,
            "biases": list(compressed.biases),
            "techniques": records_of(compressed),
            "weights_sha256": hashlib.sha256((fresh / WEIGHTS).read_bytes()).hexdigest(),
            "plan": manifest.plan.to_dict(),
            "evaluation": manifest.evaluation.to_dict(),
        }
        write_json(fresh / STRUCTURE, record)


@dataclass(frozen=True)
class LoadedNetwork:
    """A compressed network as it comes from its folder."""

    model: nn.Module  # in evaluation mode
    network: NetworkSpec  # of the dense network that it was cut from
    manifest: Manifest
    records: Mapping[str, Any]  # technique -> what it did to the dense network, as plain data
    biases: tuple[str, ...]  # layers that gained one

    @property
    def gates(self) -> tuple[GateSite, ...]:
        """The sites of its runtime gates."""
        return gate_sites(self.model)


def load_compressed(folder: Path | str, *, network: str | None = None) -> LoadedNetwork:
    """Build the network by name, repeat on it what the records say, and load its weights strictly.

    Args:
        folder: a folder that `save_compressed` wrote.
        network: the name of the network as the user gives it. A network from a Python file is built only if
            it is named here: code that a downloaded folder asks for is not run.

    Raises:
        PruningError: the folder is missing or damaged, is of another version, or does not fit the network.
    """
    folder = Path(folder)
    record = _read_record(folder)
    try:
        spec = _network(folder, record, network)
        records, biases = dict(record["techniques"]), tuple(record["biases"])
        manifest = _manifest(record)
        model = spec.build().eval()
        size = (folder / WEIGHTS).stat().st_size
        model = rebuild_(model, spec.input_shape, records, biases, largest=size)
        load_weights_(model, folder / WEIGHTS)
        with torch.no_grad():  # a damaged record can also make a network that fails only when it runs
            attempt(model.eval(), torch.zeros(1, *spec.input_shape))
    except PruningError:
        raise
    except Exception as error:  # a damaged record fails in a dozen ways, by where it is damaged
        raise_machine_failure(error)
        cause = f"{type(error).__name__}: {one_line(error)}"
        raise PruningError(f"{folder / STRUCTURE} is damaged ({cause}); write the folder anew") from error
    return LoadedNetwork(model, spec, manifest, records, biases)


def records_of(compressed: CompressedNetwork) -> dict[str, Any]:
    """Return the records of a network as it stands: technique -> plain data."""
    records = {
        kind.name: kind.recorded(compressed.model, compressed.records.get(kind.name))
        for kind in TECHNIQUES.values()
    }
    return {name: record for name, record in records.items() if record is not None}


def _read_record(folder: Path) -> Mapping[str, Any]:
    path = folder / STRUCTURE
    try:
        record = read_json(path)
    except (OSError, ValueError) as error:
        raise PruningError(f"cannot read {path}: {error}; give a folder written by train or prune") from error
    if version_of(record) != FORMAT_VERSION:
        raise PruningError(f"{path} is not a compressed network of version {FORMAT_VERSION}; write it anew")
    if unknown := set(record) - _ENTRIES:
        raise PruningError(f"{path} holds the unknown entry {min(unknown)!r}; write the folder anew")
    anew = "write the folder anew"
    try:
        read_described(folder / WEIGHTS, record.get("weights_sha256"), description=STRUCTURE, way_out=anew)
    except OSError as error:
        raise PruningError(f"cannot read {folder / WEIGHTS}: {error}; {anew}") from error
    except ValueError as error:
        raise PruningError(str(error)) from error
    return record


def _network(folder: Path, record: Mapping[str, Any], network: str | None) -> NetworkSpec:
    recorded = record["network"]
    if not isinstance(recorded, str) or not isinstance(record["data"], str):
        raise TypeError(f"network {recorded!r}, data {record['data']!r}")
    if network is None and ".py:" in recorded:
        raise PruningError(
            f"{folder} holds a network built by {recorded!r}, which is not run unasked: name it with --model"
        )
    if math.prod(record["input_shape"]) > MAX_IMAGE_NUMBERS:  # before it is worked with
        raise ValueError(f"images of shape {record['input_shape']}")
    return resolve_network(
        network or recorded,
        input_size=tuple(record["input_shape"]),
        mean=tuple(record["mean"]),
        std=tuple(record["std"]),
    )


def _manifest(record: Mapping[str, Any]) -> Manifest:
    plan = CompressionPlan(record["plan"])
    check_amounts(plan)
    return Manifest(
        network=record["network"],
        input_shape=tuple(record["input_shape"]),
        mean=tuple(record["mean"]),
        std=tuple(record["std"]),
        data=record["data"],
        plan=plan,
        evaluation=Evaluation.from_dict(record["evaluation"]),
    )
