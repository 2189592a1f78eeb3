"""The cache of latency tables: each is measured once for a network and device."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunegym.pruning.errors import PruningError
from prunegym.pruning.files.cache import cache_folder, read_cached, write_cached
from prunegym.pruning.files.plain_data import parse_json
from prunegym.pruning.graph import ChannelGraph
from prunegym.pruning.latency.layers import LayerGrid, TimeOf, layer_grids
from prunegym.pruning.latency.measuring import brief_time, measure_table
from prunegym.pruning.latency.records import LatencyTable
from prunegym.pruning.surgery.equalization import fuse_batch_norms

logger = logging.getLogger(__name__)

VERSION = 1  # another way to measure gives other tables


def latency_table(
    model: nn.Module,
    graph: ChannelGraph,
    *,
    time_of: TimeOf = brief_time,
    remeasure: bool = False,
    progress: bool = False,
) -> LatencyTable:
    """Return the latency table of a network on its device: from the cache, or measured and put there.

    Args:
        model: the dense network, on the device whose latency is asked for; it is not changed.
        graph: the network's groups, from `trace`, no patterns applied.
        time_of: times a network on an image, in milliseconds.
        remeasure: measure again even if the cache holds a table.
        progress: show a bar while measuring.

    Raises:
        PruningError: the network has no layer.
    """
    if not graph.layers:
        raise PruningError("the network runs no convolution or linear layer whose latency could be measured")
    grids = _grids(model, graph)
    key = table_key(model, graph, grids)
    path = table_path(key)
    if not remeasure and (known := _read(path)) is not None:
        return known
    table = measure_table(model, graph, grids, key, time_of=time_of, progress=progress)
    write_cached(path, json.dumps(table.to_dict()).encode())
    return table


def cached_table(model: nn.Module, graph: ChannelGraph) -> LatencyTable | None:
    """Return the latency table of a network on its device if it was measured before; see `latency_table`."""
    key = table_key(model, graph, _grids(model, graph))
    return _read(table_path(key))


def _grids(model: nn.Module, graph: ChannelGraph) -> list[LayerGrid]:
    return layer_grids(fuse_batch_norms(model, graph), graph)


def table_key(model: nn.Module, graph: ChannelGraph, grids: list[LayerGrid]) -> dict[str, Any]:
    """Return all that a table depends on, as plain data: the network's structure, device and software."""
    structure = hashlib.sha256(repr((grids, str(graph.program))).encode()).hexdigest()[:16]
    parameter = next(model.parameters())
    return {
        "version": VERSION,
        "structure": structure,
        "input": list(graph.input_shape),
        "numbers": str(parameter.dtype),
        "device": device_name(parameter.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def table_path(key: dict[str, Any]) -> Path:
    """Return the file in the cache for the table of a key."""
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    return cache_folder() / f"latency-{digest}"


def _read(path: Path) -> LatencyTable | None:
    content = read_cached(path)
    try:
        return None if content is None else LatencyTable.from_dict(parse_json(content))
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # it was changed, its checksum too
        logger.warning("the latency table %s is unusable and left aside: %s", path, error)
        return None
