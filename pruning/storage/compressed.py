"""Save a compressed network as a folder of safetensors and JSON; load it without running foreign code."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import nn

from prunegym.pruning.errors import PruningError, one_line
from prunegym.pruning.evaluation.evaluate import Evaluation
from prunegym.pruning.files import read_json, write_json
from prunegym.pruning.graph import find_groups
from prunegym.pruning.networks.registry import NetworkSpec, resolve_network
from prunegym.pruning.networks.weights import load_weights_
from prunegym.pruning.plan import PruningPlan
from prunegym.pruning.runtime.gates import GateSite, RuntimeGates, attach_gates_, gates_of
from prunegym.pruning.runtime.per_input import PerInputPolicy, find_per_input_policy
from prunegym.pruning.surgery.cutting import Structure, attempt, rebuild_

FORMAT_VERSION = 3
MAX_IMAGE_NUMBERS = 2**24  # numbers; a record that asks for more memory than that for one image is damaged
WEIGHTS, STRUCTURE = "model.safetensors", "structure.json"


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        fresh, stale = Path(scratch) / "fresh", Path(scratch) / "stale"
        fresh.mkdir()
        yield fresh
        if path.exists():
            path.rename(stale)
        fresh.rename(path)


@dataclass(frozen=True)
class Manifest:
    """The entries of `structure.json` beside the shapes."""

    network: str  # a name that `resolve_network` understands
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    data: str  # the images of the evaluation, as `load_splits` understands them
    plan: PruningPlan
    evaluation: Evaluation  # on the test images


class CompressedNetwork(Protocol):
    """A compressed network with its structure and gates: just cut, or loaded."""

    @property
    def model(self) -> nn.Module:
        """The network."""

    @property
    def structure(self) -> Structure:
        """The difference of its shape from the dense network's."""

    @property
    def gates(self) -> tuple[GateSite, ...]:
        """The sites of its runtime gates."""


def save_compressed(folder: Path, compressed: CompressedNetwork, manifest: Manifest) -> None:
    """Write weights and structure; the folder appears whole or not at all."""
    tensors = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in compressed.model.state_dict().items()
    }
    ratios = find_per_input_policy(gates_of(compressed.model))
    with folder_written_whole(folder) as fresh:
        save_file(tensors, fresh / WEIGHTS)
        record = {
            "version": FORMAT_VERSION,
            "network": manifest.network,
            "input_shape": list(manifest.input_shape),
            "mean": list(manifest.mean),
            "std": list(manifest.std),
            "data": manifest.data,
            "structure": compressed.structure.to_dict(),
            "gates": [gate.to_dict() for gate in compressed.gates],
            "per_input": ratios and ratios.to_dict(),
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
    structure: Structure
    gates: tuple[GateSite, ...]


def load_compressed(folder: Path | str, *, network: str | None = None) -> LoadedNetwork:
    """Build the network by name, cut it to the recorded structure, and load its weights strictly.

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
        structure = Structure.from_dict(record["structure"])
        gates = _gates(record, largest=(folder / WEIGHTS).stat().st_size)
        manifest = _manifest(record)
        dense = spec.build().eval()
        graph = find_groups(dense, spec.input_shape) if structure.form == "graph" else None
        model = rebuild_(dense, graph, structure)
        attach_gates_(model, gates)
        load_weights_(model, folder / WEIGHTS)
        with torch.no_grad():  # a damaged record can also make a network that fails only when it runs
            attempt(model.eval(), torch.zeros(1, *spec.input_shape))
    except PruningError:
        raise
    except Exception as error:  # a damaged record fails in a dozen ways, by where it is damaged
        cause = f"{type(error).__name__}: {one_line(error)}"
        raise PruningError(f"{folder / STRUCTURE} is damaged ({cause}); write the folder anew") from error
    return LoadedNetwork(model, spec, manifest, structure, gates.sites)


def _read_record(folder: Path) -> Mapping[str, Any]:
    path = folder / STRUCTURE
    try:
        record = read_json(path)
    except (OSError, ValueError) as error:
        raise PruningError(f"cannot read {path}: {error}; give a folder written by train or prune") from error
    if not isinstance(record, dict) or record.get("version") != FORMAT_VERSION:
        raise PruningError(f"{path} is not a compressed network of version {FORMAT_VERSION}; write it anew")
    try:
        digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    except OSError as error:
        raise PruningError(f"cannot read {folder / WEIGHTS}: {error}; write the folder anew") from error
    if digest != record.get("weights_sha256"):
        raise PruningError(
            f"{folder / WEIGHTS} is not the file that {STRUCTURE} describes; write the folder anew"
        )
    return record


def _network(folder: Path, record: Mapping[str, Any], network: str | None) -> NetworkSpec:
    recorded = record["network"]
    if network is None and ".py:" in recorded:
        raise PruningError(
            f"{folder} holds a network built by {recorded!r}, which is not run unasked: name it with --model"
        )
    if math.prod(record["input_shape"]) > MAX_IMAGE_NUMBERS:
        raise ValueError(f"images of shape {record['input_shape']}")
    return resolve_network(
        network or recorded,
        input_size=tuple(record["input_shape"]),
        mean=tuple(record["mean"]),
        std=tuple(record["std"]),
    )


def _gates(record: Mapping[str, Any], *, largest: int) -> RuntimeGates:
    """Return gates of the recorded shapes, their values not yet set.

    Args:
        record: the content of `structure.json`.
        largest: bytes of the weights file; gates of more entries are refused.
    """
    with torch.device("meta"):  # a record can ask for any size, and no memory is taken before it is checked
        gates = RuntimeGates(tuple(GateSite.from_dict(gate) for gate in record["gates"]))
        if record["per_input"] is not None:
            ratios = PerInputPolicy.from_dict(gates.sites, record["per_input"])
            ratios.requires_grad_(False).attach_(gates)
    entries = sum(tensor.numel() for tensor in gates.state_dict().values())
    if entries > largest:
        raise ValueError(f"its gates have {entries} entries, the weights file {largest} bytes")
    return gates.to_empty(device="cpu")


def _manifest(record: Mapping[str, Any]) -> Manifest:
    return Manifest(
        network=record["network"],
        input_shape=tuple(record["input_shape"]),
        mean=tuple(record["mean"]),
        std=tuple(record["std"]),
        data=str(record["data"]),
        plan=PruningPlan.from_dict(record["plan"]),
        evaluation=Evaluation.from_dict(record["evaluation"]),
    )
