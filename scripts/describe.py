"""List a network's channel groups, what is frozen and why, and the budgets that can be reached."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from prunegym.envs.budget_projection import rounded_up
from prunegym.envs.description import describe
from prunegym.pruning.storage.compressed import load_compressed
from prunegym.scripts.building import build_dense, compressed_folder
from prunegym.scripts.cli import run_verb
from prunegym.scripts.options.describe import parse
from prunegym.scripts.tables import console, print_table


def run(argv: Sequence[str]) -> None:
    """Run the verb with its command line."""
    config = parse(argv)
    if config.compressed:
        loaded = load_compressed(compressed_folder(config.compressed), network=config.model)
        model, network = loaded.model, loaded.network
    else:
        model, network = build_dense(config.network)
    record = describe(
        model,
        network.input_shape,
        only=config.only,
        protect=config.protect,
        limits=config.limits,
        method=config.method,
    )
    if config.as_json:
        print(json.dumps(record, indent=2))
        return
    prunable = sum(group["frozen"] is None for group in record["groups"])
    rows = []
    for group in record["groups"]:
        layers, share = group["layers"], group["macs_share"]
        writers = ", ".join(layers[:2]) + (f" and {len(layers) - 2} more" if len(layers) > 2 else "")
        gate = "-" if group["frozen"] else f"no: {group['ungated']}" if group["ungated"] else "yes"
        saved = "-" if share is None else f"{share:.1%}"
        rows.append([group["name"], str(group["units"]), writers, saved, gate, group["frozen"] or ""])
    print_table(
        f"{prunable} prunable channel groups, {record['macs'] / 1e6:.3f} M MACs",
        ("group", "units", "writers", "MACs saved", "runtime gate", "frozen"),
        rows,
        left=("group", "writers", "runtime gate", "frozen"),
    )
    further = [
        site for site in record["sites"] if site["name"] not in {group["name"] for group in record["groups"]}
    ]
    if further:
        names = [name for name in further[0] if name != "name"]
        print_table(
            f"{len(further)} further sites, of single layers",
            ("site", *names),
            [[site["name"], *(site[name] or "yes" for name in names)] for site in further],
            left=("site", *names),
        )
    for name, (smallest, _) in record["budgets"].items():
        console().print(f"budget {name}: {rounded_up(smallest)} to 1 can be reached")


if __name__ == "__main__":
    sys.exit(run_verb("describe"))
