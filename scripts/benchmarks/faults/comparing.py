"""What commands wrote, clocks left out, so that two runs can be compared."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from prunegym.scripts.benchmarks.faults.children import Place

HOW = ("overwrite", "resume")  # in config.json: whether a command was repeated
CLOCKS = ("latency_ms", "command", "seconds", "eager_ms", "onnx_ms", "pt2_ms", "milliseconds")


def written(place: Place) -> dict[str, Any]:
    """Return all files in the work folder and in the cache, by path: plain data without clocks."""
    found: dict[str, Any] = {}
    for root in (place.work, place.cache):
        for path in sorted(root.rglob("*")):
            name = str(path.relative_to(place.root))
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    found[f"{name}/"] = "empty"
            elif "tfevents" in path.name:
                found.setdefault(str(path.parent.relative_to(place.root)), None)
            else:
                found[name] = _content(path, place)
    for name, content in found.items():
        if content is None:
            found[name] = curves(place.root / name)
    return found


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Return the names of what is missing, more, or another."""
    names = sorted({*found, *expected})
    return [
        name for name in names if name not in found or name not in expected or found[name] != expected[name]
    ]


def without_clocks(data: Any) -> Any:
    """Return plain data without what a clock decides."""
    if isinstance(data, dict):
        return {key: without_clocks(value) for key, value in data.items() if key not in (*CLOCKS, *HOW)}
    return [without_clocks(entry) for entry in data] if isinstance(data, list) else data


def curves(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """Return steps and values of each curve of a TensorBoard run; of pictures, the steps."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # of the restarts that it is asked to heed
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()
    found: dict[str, list[tuple[int, Any]]] = {}
    for tag in events.Tags()["scalars"]:
        if not tag.startswith("time/"):
            found[tag] = [(event.step, repr(event.value)) for event in events.Scalars(tag)]
    for tag in events.Tags()["images"]:
        # drawn anew, a picture takes the place of the one that was drawn for the same step
        found[tag] = sorted({(event.step, None) for event in events.Images(tag)})
    return found


def _content(path: Path, place: Place) -> Any:
    if path.is_symlink():
        return f"link to {path.readlink()}"
    data = path.read_bytes()
    if path.parent == place.cache and path.name.startswith("latency-"):
        return _shape(json.loads(data.partition(b"\n")[2]))  # after the checksum
    if path.suffix in (".json", ".jsonl"):
        try:
            lines = data.splitlines() if path.suffix == ".jsonl" else [data]
            return without_clocks([json.loads(line) for line in lines])
        except ValueError:
            return "no JSON"
    return _digest(data)


def _shape(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _shape(value) for key, value in data.items()}
    return [_shape(entry) for entry in data] if isinstance(data, list) else type(data).__name__


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
