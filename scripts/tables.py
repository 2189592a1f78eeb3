"""Tables on standard output: one renderer for all of them, and results of networks as its main use."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from prunegym.pruning.errors import printable
from prunegym.scripts.standard_streams import standard_error, standard_output

COLUMNS = {  # key in a record -> heading, and how a value is written
    "accuracy": ("accuracy", lambda value: f"{value:.2%}"),
    "agreement": ("agreement", lambda value: f"{value:.2%}"),
    "score": ("score", lambda value: f"{value + 0.0:.5g}"),  # no -0
    "macs": ("MACs", lambda value: f"{value / 1e6:.3f} M"),
    "params": ("parameters", lambda value: f"{value:,}"),
    "bytes": ("bytes", lambda value: f"{value:,}"),
    "latency_ms": ("latency", lambda value: f"{value:.2f} ms"),
    "onnx_bytes": ("ONNX bytes", lambda value: f"{value:,}"),
    "pt2_bytes": ("pt2 bytes", lambda value: f"{value:,}"),
    "eager_ms": ("eager", lambda value: f"{value:.2f} ms"),
    "onnx_ms": ("onnxruntime", lambda value: f"{value:.2f} ms"),
    "pt2_ms": ("torch.export", lambda value: f"{value:.2f} ms"),
}


def show(record: Mapping[str, Any], title: str, *, as_json: bool) -> None:
    """Print a record of `rows`, `gated_groups` and, perhaps, a `verdict`: as a table, or as JSON."""
    if as_json:
        print_json(record)
        return
    show_rows(title, record["rows"], gated=record["gated_groups"])
    if "latency" in record:
        shares = record["latency"]
        print_note(
            f"latency: {shares['predicted']:.1%} of the dense network's predicted, {shares['measured']:.1%} "
            f"measured (the table's worst error: {shares['worst_error']:.1%})"
        )
    if "verdict" in record:
        print_note(record["verdict"])


def gated_note(gated: Mapping[str, int]) -> str:
    """Return the note on rows marked with a star, from the number of gated groups of each row."""
    names = ", ".join(f"{name} ({count} group{'s' * (count > 1)})" for name, count in gated.items() if count)
    return f"{names}: for each input, units are skipped; latency with only the others run"


def show_rows(title: str, rows: Mapping[str, Mapping[str, Any]], *, gated: Mapping[str, int]) -> None:
    """Print rows of metrics; the row "dense" is what the shares are of.

    Args:
        title: printed above the table.
        rows: name -> metrics, as in `metrics.json`.
        gated: rows with runtime gates -> how many groups they gate; marked, with a note below.
    """
    columns = [key for key in COLUMNS if any(row.get(key) is not None for row in rows.values())]
    dense = rows.get("dense", {})
    cells = []
    for name, row in rows.items():
        mark = " *" if gated.get(name) else ""
        cells.append([name, *(_cell(key, row.get(key), dense.get(key), mark) for key in columns)])
    print_table(title, ["", *(COLUMNS[key][0] for key in columns)], cells)
    if any(gated.values()):
        print_note(f"* {gated_note(gated)}")


def print_table(
    title: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    left: Collection[str] | None = None,
    pad_edge: bool = True,
) -> None:
    """Print a table.

    Args:
        title: printed above the table.
        headings: one for each column.
        rows: the cells of each row.
        left: headings of the columns that are aligned to the left; by default the first one.
        pad_edge: leave a space at both ends of a row.
    """
    table = Table(title=printable(title), title_justify="left", pad_edge=pad_edge)
    for heading in headings:
        table.add_column(printable(heading), justify="left" if heading in (left or headings[:1]) else "right")
    for row in rows:
        table.add_row(*map(printable, row))
    _console().print(table)


def print_json(record: Any, *, indent: int | None = 2) -> None:
    """Print plain data as JSON."""
    print(json.dumps(record, indent=indent), file=standard_output())


def print_note(text: str) -> None:
    """Print a line of text, such as one below a table."""
    _console().print(printable(text), soft_wrap=True)


def print_aside(text: str) -> None:
    """Print a line of text on standard error, beside the results."""
    print(printable(text), file=standard_error())


def _console() -> Console:
    """Return standard output, of a fixed width where it is no terminal; names in it are never markup."""
    plain = partial(Console, file=standard_output(), markup=False, emoji=False)
    return plain() if plain().is_terminal else plain(width=120)


def _cell(key: str, value: Any, dense: Any, mark: str) -> str:
    if value is None:
        return "-"
    text = COLUMNS[key][1](value) + (mark if key == "macs" else "")
    return f"{text}  {value / dense:6.1%}" if dense else text
