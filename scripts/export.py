"""Write a compressed network as ONNX or for torch.export, check it, and compare it with the dense one."""

from __future__ import annotations

import argparse
import json
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
from prunegym.pruning.storage.export import (
    FORMATS,
    N_SINGLE_IMAGES,
    OPSET,
    Comparison,
    export_network,
    to_program,
)
from prunegym.scripts import options
from prunegym.scripts.cli import run_verb
from prunegym.scripts.run_folder import compressed_folder, console, show_rows

COMPARED = 32  # images


def build_parser() -> options.Parser:
    """Return the parser of this verb."""
    parser = options.Parser("export", __doc__ or "")
    parser.add_argument("--compressed", type=Path, metavar="DIR", help="a folder that train or prune wrote")
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="FILE.py:FACTORY, where that is what was compressed (it is not run unasked)",
    )
    parser.add_argument("--format", choices=[*FORMATS, "both"], default="onnx", help="default onnx")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="FILE.onnx, FILE.pt2, or the folder for model.onnx and model.pt2",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.add_argument(
        "--opset", type=options.positive, default=OPSET, metavar="N", help=f"of ONNX (default {OPSET})"
    )
    parser.add_argument(
        "--data",
        metavar="SPEC",
        help="test images to check on (default: those it was measured on); none: random ones",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random images (default 0)")
    parser.add_argument("--json", action="store_true", help="print the record as JSON instead of a table")
    return parser


def run(argv: Sequence[str]) -> None:
    """Carry the verb out."""
    args = build_parser().parse(argv)
    if args.compressed is None:
        raise options.UsageError("name the folder of the compressed network with --compressed")
    paths = _paths(args)
    loaded = load_compressed(compressed_folder(args.compressed), network=args.model)
    images = _images(loaded, args)
    count_classes(loaded.model, loaded.network)  # what gives no logits is refused before the work begins
    metadata = {
        "network": loaded.manifest.network,
        "input_shape": list(loaded.network.input_shape),
        "mean": list(loaded.network.mean),
        "std": list(loaded.network.std),
    }
    compared = export_network(loaded.model, paths, images, metadata=metadata, opset=args.opset)
    with tempfile.TemporaryDirectory() as scratch:
        record = _record(loaded, paths, compared, images, Path(scratch), opset=args.opset)
    if args.json:
        print(json.dumps(record, indent=2))
    else:
        _show(record, str(args.compressed))


def _paths(args: argparse.Namespace) -> dict[str, Path]:
    """Return the file of each format.

    Raises:
        UsageError: --out is missing, is a file of another format, or a file is there already.
    """
    if args.out is None:
        raise options.UsageError("name the file or folder to write with --out")
    formats = list(FORMATS) if args.format == "both" else [args.format]
    ending = args.out.suffix.removeprefix(".")
    if ending not in FORMATS:
        paths = {name: args.out / f"model.{name}" for name in formats}
    elif formats == [ending]:
        paths = {ending: args.out}
    else:
        raise options.UsageError(
            f"{args.out} does not go with --format {args.format}; name a folder, or change one"
        )
    there = [str(path) for path in paths.values() if path.exists()]
    if there and not args.overwrite:
        raise options.UsageError(f"{' and '.join(there)} exists; give another --out, or --overwrite")
    return paths


def _images(loaded: LoadedNetwork, args: argparse.Namespace) -> Tensor:
    """Return the first test images, or random ones: [N, ...]."""
    spec = args.data or loaded.manifest.data
    if spec == "none":
        generator = torch.Generator().manual_seed(args.seed)
        return torch.randn(COMPARED, *loaded.network.input_shape, generator=generator)
    test = load_splits(spec, loaded.network, seed=args.seed).test
    return test.take(torch.arange(min(COMPARED, len(test))))


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
    program = to_program(dense, shape)
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
        console().print(
            f"{path}: on {found['images']} images, {N_SINGLE_IMAGES} of them one by one, "
            f"logits differ by at most {found['difference']:.1e}; "
            f"the same class for {found['agreement']:.0%}",
            soft_wrap=True,
        )
    if record["gates"]:
        console().print(
            "gates are exported as masks: the files compute what gates skip; only eager saves those MACs"
        )


if __name__ == "__main__":
    sys.exit(run_verb("export"))
