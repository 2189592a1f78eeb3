"""The flags of `export`, and their record."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunegym.pruning.storage.export import FORMATS, OPSET
from prunegym.scripts.options.network import add_compressed_flag
from prunegym.scripts.options.parser import MAX_SEED, Parser, UsageError, whole


@dataclass(frozen=True)
class ExportConfig:
    """A compressed network, and the files to write."""

    compressed: Path
    model: str | None  # FILE.py:FACTORY, where that is what was compressed
    files: Mapping[str, Path]  # format -> file
    opset: int
    data: str | None  # test images to check on; by default those it was measured on
    seed: int
    as_json: bool


def parse(argv: Sequence[str]) -> ExportConfig:
    """Return the record of a command line and its YAML file.

    Raises:
        UsageError: a flag is unknown or missing, its value wrong, or a file is there already.
    """
    parser = Parser(
        "export",
        "Write a compressed network as ONNX or for torch.export, check it, and compare it with the dense "
        "one.",
    )
    add_compressed_flag(parser)
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
        "--opset", type=whole(1, 100), default=OPSET, metavar="N", help=f"of ONNX (default {OPSET})"
    )
    parser.add_argument(
        "--data",
        metavar="SPEC",
        help="test images to check on (default: those it was measured on); none: random ones",
    )
    parser.add_argument("--seed", type=whole(0, MAX_SEED), default=0, help="of the random images (default 0)")
    parser.add_argument("--json", action="store_true", help="print the record as JSON instead of a table")
    flags = parser.parse(argv)
    if flags.compressed is None:
        raise UsageError("name the folder of the compressed network with --compressed")
    return ExportConfig(
        flags.compressed, flags.model, _files(flags), flags.opset, flags.data, flags.seed, flags.json
    )


def _files(flags: argparse.Namespace) -> dict[str, Path]:
    """Return the file of each format.

    Raises:
        UsageError: --out is missing, is a file of another format, or a file is there already.
    """
    if flags.out is None:
        raise UsageError("name the file or folder to write with --out")
    formats = list(FORMATS) if flags.format == "both" else [flags.format]
    out = flags.out.absolute()  # a network's code may change the working folder
    ending = out.suffix.removeprefix(".")
    if ending not in FORMATS:
        files = {name: out / f"model.{name}" for name in formats}
    elif formats == [ending]:
        files = {ending: out}
    else:
        raise UsageError(
            f"{flags.out} does not go with --format {flags.format}; name a folder, or change one"
        )
    there = [str(path) for path in files.values() if path.exists()]
    if there and not flags.overwrite:
        raise UsageError(f"{' and '.join(there)} exists; give another --out, or --overwrite")
    return files
