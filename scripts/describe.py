"""List a network's channel groups, what is frozen and why, and the budgets that can be reached."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from prunegym.envs.budget_projection import rounded_up
from prunegym.envs.description import describe
from prunegym.pruning.storage.compressed import load_compressed
from prunegym.scripts.building import build_dense, compressed_folder
from prunegym.scripts.cli import run_verb
from prunegym.scripts.options.describe import parse
from prunegym.scripts.tables import print_json, print_note, print_table


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
        print_json(record)
        return
    prunable = sum(group["frozen"] is None for group in record["groups"])
    groups = {group["name"] for group in record["groups"]}
    sites = {site["name"]: site for site in record["sites"]}
    further = [name for name in config.method.techniques if name != "channels"]  # those are pruned or frozen
    rows = []
    for group in record["groups"]:
        layers, share = group["layers"], group["macs_share"]
        writers = ", ".join(layers[:2]) + (f" and {len(layers) - 2} more" if len(layers) > 2 else "")
        admitted = [_admitted(sites.get(group["name"]), name) for name in further]
        saved = "-" if share is None else f"{share:.1%}"
        rows.append([group["name"], str(group["units"]), writers, saved, *admitted, group["frozen"] or ""])
    print_table(
        f"{prunable} prunable channel groups, {record['macs'] / 1e6:.3f} M MACs",
        ("group", "units", "writers", "MACs saved", *further, "frozen"),
        rows,
        left=("group", "writers", *further, "frozen"),
    )
    alone = [site for name, site in sites.items() if name not in groups]
    if alone:
        print_table(
            f"{len(alone)} further sites, of single layers",
            ("site", *further),
            [[site["name"], *(_admitted(site, name) for name in further)] for site in alone],
            left=("site", *further),
        )
    for name, (smallest, _) in record["budgets"].items():
        print_note(f"budget {name}: {rounded_up(smallest)} to 1 can be reached")
    if layers := record["unfollowed"]["layers"]:
        share = f"{record['unfollowed']['macs_share']:.1%}"
        print_note(f"In modules that were not followed lie {len(layers)} of the layers, {share} of the MACs:")
        for name, reason in layers.items():
            print_note(f"  {name}: {reason}")


def _admitted(site: Mapping[str, str | None] | None, technique: str) -> str:
    """Return whether a technique can decide at a group's site, and if not, why."""
    if site is None:
        return "-"
    return f"no: {site[technique]}" if site[technique] else "yes"


if __name__ == "__main__":
    sys.exit(run_verb("describe"))
