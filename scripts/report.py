"""Build one self-contained HTML page from a run's folder: figures, pictures, plan, and what speaks for it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunegym.agents.episode_log import EPISODES, read_episodes
from prunegym.agents.pictures import Run, png, read_inputs, read_updates, reasons, run_pictures, words
from prunegym.agents.pictures.page import bullets, element, page, picture, table
from prunegym.agents.pictures.plan_table import plan_cells
from prunegym.envs.results import PlainPlan
from prunegym.pruning.errors import PlanError
from prunegym.pruning.files.plain_data import read_json
from prunegym.pruning.files.writing import written_whole
from prunegym.pruning.plan import CompressionPlan
from prunegym.pruning.techniques import check_amounts
from prunegym.scripts.cli import run_verb
from prunegym.scripts.options.parser import UsageError
from prunegym.scripts.options.report import parse
from prunegym.scripts.run_folder import CONFIG, INPUTS, METRICS, UPDATES
from prunegym.scripts.tables import COLUMNS, gated_note, print_aside

PICTURES = {  # title and caption
    "pareto": (
        "Score against cost",
        "Every evaluated plan: higher scores better, farther left costs less. No plan beats one on the front "
        "in both. The reward images are the agent's; test images are seen once all is decided.",
    ),
    "reward": (
        "Learning",
        "The best reward so far, over the evaluations that each spent; the marks are single evaluations, "
        "those far below the others at the lower edge.",
    ),
    "heatmap": (
        "Decisions",
        "What the learner tried: a column for each of its plans, a row for each channel group.",
    ),
    "bars": (
        "What was taken where",
        "The chosen plan against the uniform one, which takes evenly within the same budget.",
    ),
    "inputs": ("What inputs cost", "Test images by their MACs: the budget holds on average, not for each."),
    "difficulty": (
        "Cost against difficulty",
        "Each test image by its place in difficulty, which is what it loses under the fixed plan.",
    ),
    "examples": ("Cheap and dear inputs", "The test images that took the fewest MACs, and the most."),
    "ratios": (
        "What the gates skipped",
        "The runtime ratios that the test images got; the band leaves out the lowest and the highest tenth.",
    ),
    "learning": (
        "Agreement and cost while learning",
        "Inputs answered as the dense network does, and MACs: thin for each update, thick the running mean.",
    ),
}
FIXED = ("heatmap", "examples")  # their colours are values
MAX_FIGURE = 1e18  # of multiply-adds, bytes and the like
SCALE = 0.75  # all but the heat map are drawn finer than they are shown, for print


def run(argv: Sequence[str]) -> None:
    """Run the verb with its command line."""
    config = parse(argv)
    write_report(config.run, config.page)
    print_aside(f"written to {config.page}")


def write_report(folder: Path, out: Path) -> None:
    """Write the page of a run's folder to the file `out`.

    Raises:
        UsageError: there is no such folder, it holds no run, or a file in it is damaged.
        AgentError: a line of its episodes is damaged.
        PlanError: a plan is damaged.
    """
    run, record = read_run(folder)
    text = page(_title(run), _pieces(run, record))
    with written_whole(out) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_pictures(folder: Path) -> Mapping[str, NDArray[np.uint8]]:
    """Write the pictures of a run's folder as PNG files into its folder `pictures`; return them by name.

    Raises:
        UsageError, AgentError, PlanError: as `write_report`.
    """
    pictures = run_pictures(read_run(folder)[0])
    for name, pixels in pictures.items():
        with written_whole(folder / "pictures" / f"{name}.png") as temporary:
            temporary.write_bytes(png(pixels))
    return pictures


def read_run(folder: Path) -> tuple[Run, dict[str, Any]]:
    """Return what a run's folder holds so far, and its metrics as they are; empty while it goes on.

    Raises:
        UsageError, AgentError, PlanError: as `write_report`.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}; name one that train wrote")
    if not (folder / CONFIG).is_file():
        raise UsageError(f"{folder} holds no run ({CONFIG} is missing); name a folder that train wrote")
    plan, metrics, inputs = folder / "plan.json", folder / METRICS, folder / INPUTS
    record = _read(metrics, lambda path: _checked(path, read_json(path))) if metrics.exists() else {}
    found = Run(
        config=_read(folder / CONFIG, lambda path: dict(read_json(path))),
        episodes=read_episodes(folder / EPISODES),
        finished=bool(record),
        rows=record.get("rows", {}),
        plans=record.get("plans", {}),
        plan=_checked_plan(plan, CompressionPlan.load(plan)) if plan.exists() else None,
        updates=_read(folder / UPDATES, read_updates),
        inputs=_read(inputs, read_inputs) if inputs.exists() else None,
    )
    return found, record


def _read(path: Path, load: Callable[[Path], Any]) -> Any:
    try:
        return load(path)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:  # not as written
        raise UsageError(f"{path} is damaged ({error!r}); run train again, or restore it") from error


def _checked(path: Path, data: Any) -> dict[str, Any]:
    """Return metrics of which everything that the page takes is known to be of its kind."""
    rows = {
        name: {key: None if row.get(key) is None else _figure(row[key]) for key in COLUMNS}
        for name, row in data["rows"].items()
    }
    if not all(
        (row["macs"] or 0) > 0 for row in rows.values()
    ):  # others are shown as shares of the dense network's
        raise ValueError("rows need MACs above 0")
    sites = [_checked_site(site) for site in data.get("sites", [])]
    plans = {name: _checked_plan(path, CompressionPlan(plan)) for name, plan in data.get("plans", {}).items()}
    gated = {name: int(count) for name, count in data.get("gated_groups", {}).items()}
    return {**data, "rows": rows, "sites": sites, "plans": plans, "gated_groups": gated}


def _figure(value: Any) -> float:
    """Return a figure of a network; what no network can have would break the layout of tables."""
    figure = float(value)
    if not abs(figure) < MAX_FIGURE:
        raise ValueError(f"a figure must be below {MAX_FIGURE:g}, got {figure:g}")
    return figure


def _checked_plan(path: Path, plan: CompressionPlan) -> PlainPlan:
    try:
        check_amounts(plan)
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from error
    return plan.to_dict()


def _checked_site(site: Any) -> dict[str, Any]:
    quarter, half, three_quarters = (_figure(error) for error in site["errors"])
    return {
        "name": str(site["name"]),
        "units": int(site["units"]),
        "macs_share": _figure(site["macs_share"]),
        "errors": [quarter, half, three_quarters],
    }


def _title(run: Run) -> str:
    model, budget = (", ".join(words(run.config.get(flag))) for flag in ("model", "budget"))
    return f"{model} at {budget}" if budget else model


def _pieces(run: Run, record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the page from top to bottom; what the run does not hold is left out."""
    yield element("h1", _title(run))
    flags = [
        f"{flag} {run.config[flag]}" for flag in ("algo", "episodes", "seed", "data") if flag in run.config
    ]
    yield element("p", " · ".join(flags), style="quiet")
    if not run.finished:
        yield element("p", "Not finished: the run goes on or was interrupted. This is what it holds so far.")
    if "verdict" in record:
        yield element("p", str(record["verdict"]), style="verdict")
    yield element("pre", str(run.config.get("command", "")))
    yield from _rows(record)
    for name, pixels in run_pictures(run).items():
        title, caption = PICTURES[name]
        scale = 1.0 if name == "heatmap" else SCALE
        yield element("h2", title)
        yield picture(pixels, title, caption, scale=scale, invertible=name not in FIXED)
    if run.chosen and run.uniform is not None and record.get("sites"):
        yield element("h2", "Why")
        yield bullets(reasons(record["sites"], run.uniform, run.chosen[1]))
    yield from _plan(run, record)
    yield from _evaluations(run)


def _rows(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of rows, each figure with its share of the dense network's where there is one."""
    rows, gated = record.get("rows", {}), record.get("gated_groups", {})
    if not rows:
        return
    keys = [key for key in COLUMNS if any(row[key] is not None for row in rows.values())]
    yield element("h2", "On test images")
    yield table(
        ["", *(COLUMNS[key][0] for key in keys)],
        [[name + " *" * bool(gated.get(name)), *(_cell(rows, name, key) for key in keys)] for name in rows],
    )
    if any(gated.values()):
        yield element("p", f"* {gated_note(gated)}.", style="quiet")
    if "learned_is" in record:
        yield element("p", f"The learned row is the {record['learned_is']}.", style="quiet")


def _cell(rows: Mapping[str, Mapping[str, Any]], name: str, key: str) -> str:
    value, dense = rows[name][key], rows.get("dense", {}).get(key)
    if value is None:
        return "-"
    text = COLUMNS[key][1](int(value) if key in ("params", "bytes") else value)
    return f"{text} ({value / dense:.1%})" if dense and name != "dense" else text


def _plan(run: Run, record: Mapping[str, Any]) -> Iterator[str]:
    if not run.chosen:
        return
    name, plan = run.chosen
    facts = {site["name"]: site for site in record.get("sites", [])}
    keys, amounts = plan_cells(plan)
    rows = []
    for site, decided in amounts.items():
        cells = [site, *decided]
        if known := facts.get(site):
            cells += [str(known["units"]), f"{known['macs_share']:.1%}", f"{known['errors'][1]:.1%}"]
        rows.append(cells)
    yield element("h2", f"The plan: {name}")
    more = ["units", "MACs", "loss at 50%"] if facts else []
    yield table(["site", *keys, *more], rows)
    if facts:
        note = (
            "MACs: of the dense network, saved if the site vanished. Loss: share of its readers' output "
            "variance that least squares cannot restore when half the group's units go."
        )
        yield element("p", note, style="quiet")
    if run.inputs is not None:
        note = "Inputs depart from these runtime ratios, each in its own way; see the pictures."
        yield element("p", note, style="quiet")


def _evaluations(run: Run) -> Iterator[str]:
    if not run.episodes:
        return
    rows = []
    for by, count in Counter(episode.by for episode in run.episodes).items():
        judged = [one.result.total for one in run.episodes if one.by == by and not one.result.estimated]
        best = f"{max(judged):.4f}" if judged else "-"
        rows.append([by, str(count), str(count - len(judged)), best])
    yield element("h2", "Evaluations")
    yield table(["by", "plans evaluated", "estimated only", "best reward"], rows)


if __name__ == "__main__":
    sys.exit(run_verb("report"))
