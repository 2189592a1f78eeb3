"""Write a compressed network as ONNX or for torch.export, check it, and compare it with the dense one."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunegym.envs import count_classes
from prunegym.pruning.cost import count_params
from prunegym.pruning.data import load_splits
from prunegym.pruning.graph import find_groups
from prunegym.pruning.latency.timing import measure_latency
from prunegym.pruning.runtime.slicing import deployed
from prunegym.pruning.storage.compressed import LoadedNetwork, load_compressed
from prunegym.pruning.storage.export import FORMATS, N_SINGLE_IMAGES, Comparison, export_network, to_program
from prunegym.scripts.building import compressed_folder
from prunegym.scripts.cli import run_verb
from prunegym.scripts.options.export import parse
from prunegym.scripts.tables import print_json, print_note, show_rows

COMPARED = 32  # images


def run(argv: Sequence[str]) -> None:
    """Run the verb with its command line."""
    config = parse(argv)
    loaded = load_compressed(compressed_folder(config.compressed), network=config.model)
    spec = config.data or loaded.manifest.data
    if spec == "none":
        generator = torch.Generator().manual_seed(config.seed)
        images = torch.randn(COMPARED, *loaded.network.input_shape, generator=generator)
    else:
        test = load_splits(spec, loaded.network, seed=config.seed).test
        images = test.take(torch.arange(min(COMPARED, len(test))))
    count_classes(loaded.model, loaded.network)  # what gives no logits is refused before the work begins
    metadata = {
        "network": loaded.manifest.network,
        "input_shape": list(loaded.network.input_shape),
        "mean": list(loaded.network.mean),
        "std": list(loaded.network.std),
    }
    compared = export_network(loaded.model, config.files, images, metadata=metadata, opset=config.opset)
    with tempfile.TemporaryDirectory() as scratch:
        record = _record(loaded, config.files, compared, images, Path(scratch), opset=config.opset)
    if config.as_json:
        print_json(record)
    else:
        _show(record, str(config.compressed))


def _record(
    loaded: LoadedNetwork,
    paths: Mapping[str, Path],
    compared: Mapping[str, Comparison],
    images: Tensor,
    scratch: Path,
    *,
    opset: int,
) -> dict[str, Any]:
    """Return what came of it as plain data; all networks are timed in turn, on one image.

    The dense network's weights are random: neither its size nor its speed hangs on them.
    """
    shape = loaded.network.input_shape
    dense = loaded.network.build().eval()
    dense_paths = {name: scratch / path.name for name, path in paths.items()}
    program, _ = to_program(dense, shape)
    for name, path in dense_paths.items():
        FORMATS[name].write(program, path, {}, opset)
    rows = {
        "dense": (dense, dense_paths, find_groups(dense, shape).macs),
        "compressed": (loaded.model, paths, loaded.manifest.evaluation.macs),
    }
    timed: dict[str, nn.Module] = {}
    for row, (model, files, _) in rows.items():
        timed[f"{row} eager"] = deployed(model, shape)
        timed |= {f"{row} {name}": FORMATS[name].open(path) for name, path in files.items()}
    times = measure_latency(timed, images[:1])
    return {
        "files": {name: str(path) for name, path in paths.items()},
        "compared": {name: found.to_dict() for name, found in compared.items()},
        "gates": "masked" if loaded.gates else None,
        "rows": {
            row: {
                "macs": macs,
                "params": count_params(model),
                "eager_ms": times[f"{row} eager"],
                **{f"{name}_bytes": path.stat().st_size for name, path in files.items()},
                **{f"{name}_ms": times[f"{row} {name}"] for name in files},
            }
            for row, (model, files, macs) in rows.items()
        },
    }


def _show(record: Mapping[str, Any], title: str) -> None:
    show_rows(title, record["rows"], gated={})
    for name, path in record["files"].items():
        found = record["compared"][name]
        print_note(
            f"{path}: on {found['images']} images, {N_SINGLE_IMAGES} of them one by one, "
            f"logits differ by at most {found['difference']:.1e}; "
            f"the same class for {found['agreement']:.0%}",
        )
    if record["gates"]:
        print_note(
            "gates are exported as masks: the files compute what gates skip; only eager saves those MACs"
        )


if __name__ == "__main__":
    sys.exit(run_verb("export"))
