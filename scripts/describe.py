"""List a network's channel groups, what is frozen and why, and the budgets that can be reached."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import nn

from prunegym.envs.budget import Limits
from prunegym.envs.budget_projection import rounded_up
from prunegym.envs.description import describe
from prunegym.pruning.compensation import COMPENSATIONS
from prunegym.pruning.networks.registry import resolve_network
from prunegym.pruning.networks.weights import load_weights_
from prunegym.pruning.storage.compressed import load_compressed
from prunegym.scripts import options
from prunegym.scripts.cli import run_verb
from prunegym.scripts.run_folder import compressed_folder, console


def build_parser() -> options.Parser:
    """Return the parser of this verb."""
    parser = options.Parser("describe", __doc__ or "")
    options.add_network_flags(parser)
    parser.set_defaults(model=None)
    options.add_pruning_flags(parser)
    parser.add_argument("--compressed", type=Path, metavar="DIR", help="a folder that train or prune wrote")
    options.add_output_flags(parser, out=False)
    return parser


def run(argv: Sequence[str]) -> None:
    """Carry the verb out."""
    args = build_parser().parse(argv)
    COMPENSATIONS[args.compensation]  # unknown names are refused before the work begins
    model, input_shape = _network(args)
    record = describe(
        model,
        input_shape,
        only=args.only,
        protect=args.protect,
        limits=Limits(static=args.max_static_ratio),
        round_to=args.round_to,
        compensation=args.compensation,
    )
    if args.json:
        print(json.dumps(record, indent=2))
    else:
        _show(record)


def _network(args: argparse.Namespace) -> tuple[nn.Module, tuple[int, ...]]:
    if args.compressed:
        options.refuse_dense(args)
        loaded = load_compressed(compressed_folder(args.compressed), network=args.model)
        return loaded.model, loaded.network.input_shape
    network = resolve_network(
        args.model or "digits_resnet",
        input_size=tuple(args.input_size) if args.input_size else None,
        mean=args.mean,
        std=args.std,
    )
    model = network.build().eval()
    if args.weights is not None:
        load_weights_(model, args.weights)
    return model, network.input_shape


def _show(record: dict[str, Any]) -> None:
    prunable = sum(group["frozen"] is None for group in record["groups"])
    table = Table(
        title=f"{prunable} prunable channel groups, {record['macs'] / 1e6:.3f} M MACs",
        title_justify="left",
    )
    for heading in ("group", "units", "writers", "MACs saved", "runtime gate", "frozen"):
        table.add_column(heading, justify="right" if heading in ("units", "MACs saved") else "left")
    for group in record["groups"]:
        layers, share = group["layers"], group["macs_share"]
        writers = ", ".join(layers[:2]) + (f" and {len(layers) - 2} more" if len(layers) > 2 else "")
        gate = "-" if group["frozen"] else f"no: {group['ungated']}" if group["ungated"] else "yes"
        saved = "-" if share is None else f"{share:.1%}"
        table.add_row(group["name"], str(group["units"]), writers, saved, gate, group["frozen"] or "")
    console().print(table)
    for name, (smallest, _) in record["budgets"].items():
        console().print(f"budget {name}: {rounded_up(smallest)} to 1 can be reached")


if __name__ == "__main__":
    sys.exit(run_verb("describe"))
