"""Measure what a network's layers take on this device, at the widths that pruning may leave them.

The table is kept in the cache and prices latency budgets; it is measured anew for another device, number of
threads or torch.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

from prunegym.envs import Budget, BudgetRange
from prunegym.pruning.evaluation.comparison import Rows
from prunegym.pruning.latency import LatencyTable
from prunegym.pruning.network import PrunableNetwork
from prunegym.pruning.plan import CompressionPlan
from prunegym.scripts.building import build_dense, build_latency_table, usable_device
from prunegym.scripts.cli import run_verb
from prunegym.scripts.options.latency import parse
from prunegym.scripts.tables import print_json, print_note, print_table

logger = logging.getLogger(__name__)


def run(argv: Sequence[str]) -> None:
    """Run the verb with its command line."""
    config = parse(argv)
    model, network = build_dense(config.network, seed=config.seed)
    table = build_latency_table(
        model.to(usable_device(config.device)),
        network.input_shape,
        remeasure=config.remeasure,
        progress=config.progress,
    )
    record = describe_table(table)
    if config.as_json:
        print_json(record)
        return
    key, error, dense = record["key"], record["error"], record["dense_milliseconds"]
    title = (
        f"{config.network.name}: {dense:.2f} ms for one image on {key['device']}, threads: {key['threads']}"
    )
    rows = []
    for row in record["layers"]:
        names = row["names"]
        label = names[0] + (f" and {len(names) - 1} more calls" if len(names) > 1 else "")
        rows.append([label, str(row["widths"]), f"{row['milliseconds']:.3f}", f"{row['share']:.1%}"])
    rest = record["rest_milliseconds"]
    rows.append(["all else", "", f"{rest:.3f}", f"{rest / dense:.1%}"])
    print_table(title, ("layers", "widths timed", "ms", "share"), rows)
    print_note(
        f"shares predicted of {error['networks']} networks cut at random are off by {error['median']:.1%} "
        f"(median), {error['worst']:.1%} (worst)"
    )


def describe_table(table: LatencyTable) -> dict[str, Any]:
    """Return a latency table's figures for the dense network, as plain data.

    Returns:
        `layers`: one entry for layers of equal shape, with their `names` (once per call), the `milliseconds`
        of all calls, their `share` of the dense network's latency, and the number of `widths` timed.
        `rest_milliseconds`: activations and everything else. `dense_milliseconds`: as measured. `error`: the
        `median` and `worst` relative error of predicted latency shares, over a number of `networks` cut at
        random. `key`: what the table was measured for.
    """
    times = [table.whole.scale * len(one.layers) * one.dense for one in table.layers]
    layers = [
        {
            "names": list(one.layers),
            "milliseconds": found,
            "share": found / table.dense,
            "widths": len(one.inputs) * len(one.outputs),
        }
        for one, found in zip(table.layers, times, strict=True)
    ]
    error = {"median": table.usual_error, "worst": table.worst_error, "networks": len(table.errors)}
    return {
        "layers": layers,
        "rest_milliseconds": table.dense - sum(times),
        "dense_milliseconds": table.dense,
        "error": error,
        "key": dict(table.key),
    }


def predicted_and_measured(
    network: PrunableNetwork, rows: Rows, name: str, plan: CompressionPlan, budget: Budget | BudgetRange
) -> dict[str, Any]:
    """Return a record's entry on latency, empty without a latency budget; warn where it is missed.

    Args:
        network: the network that latency was priced on.
        rows: networks measured side by side, "dense" among them.
        name: the row to report on.
        plan: the plan that this row applies.
        budget: the budget that the plan was to meet.
    """
    limit = budget.shares.get("latency") if isinstance(budget, Budget) else None
    if network.latency is None or limit is None:
        return {}
    table = network.latency
    found, dense = (rows.evaluations[row].latency_ms for row in (name, "dense"))
    assert found is not None  # rows are measured with a stopwatch
    assert dense is not None
    share = network.cost.shares(network.space.levels(plan))["latency"]
    measured = found / dense
    if measured > limit * (1 + table.worst_error):
        logger.warning(
            "latency: %.1f %% of the dense network's was measured where %.1f %% may remain, which is further "
            "off than the table's worst error (%.1f %%); try prunegym latency --remeasure on a quiet machine",
            *(100 * value for value in (measured, limit, table.worst_error)),
        )
    entry = {"budget": limit, "predicted": share, "measured": measured, "worst_error": table.worst_error}
    return {"latency": entry}


if __name__ == "__main__":
    sys.exit(run_verb("latency"))
