"""The page of a run, from folders as `train` writes them, finished or not."""

from __future__ import annotations

import base64
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prunegym.pruning.plan import CompressionPlan
from prunegym.scripts.report import read_run, write_pictures

pytestmark = pytest.mark.runs

GROUPS = ["conv1", "conv<i>2"]
MODEL = "nets<b>.py:make"
VOID = {"meta", "img", "link", "br"}


def plan(*static: float) -> dict[str, dict[str, float]]:
    return {
        group: {"static_ratio": ratio, "runtime_ratio": 0.1}
        for group, ratio in zip(GROUPS, static, strict=True)
    }


def row(accuracy: float, macs: int) -> dict[str, Any]:
    sizes = {"macs": macs, "params": macs // 10, "bytes": macs // 3}
    return {"accuracy": accuracy, **sizes, "latency_ms": 1.5, "agreement": None}


def episode(by: str, score: float, static: float) -> dict[str, Any]:
    reward = {"accuracy": score, "total": score - 0.1}
    sizes = {"accuracy": score, "shares": {"macs": 0.5, "params": 0.5}}
    return {"by": by, "plan": plan(static, 1 - static), "reward": reward, **sizes}


CONFIG = {
    "model": MODEL,
    "budget": ["macs=0.5"],
    "algo": "ppo",
    "episodes": 2,
    "seed": 0,
    "command": "prunegym train --model 'nets<b>.py:make'",
}
EPISODES = [
    *(episode("uniform", 0.7, 0.5), episode("ppo", 0.6, 0.2), episode("ppo", 0.8, 0.3)),
    {**episode("ppo", 0.6, 0.4), "reward": {"total": 0.9, "estimated": True}},
    *(episode("random", 0.5, 0.8), episode("random", 0.65, 0.7)),
]
METRICS = {
    "rows": {"dense": row(0.9, 1_000_000), "uniform": row(0.7, 500_000), "learned": row(0.75, 480_000)},
    "gated_groups": {"dense": 0, "uniform": 0, "learned": 2},
    "verdict": "learned beats uniform by 5.0 points & more",
    "learned_is": "final policy",
    "candidates": {},
    "plans": {"uniform": plan(0.5, 0.5), "learned": plan(0.3, 0.7)},
    "sites": [
        {"name": name, "units": 8, "macs_share": share, "params_share": 0.1, "errors": [0.01, loss, 0.3]}
        for name, share, loss in zip(GROUPS, (0.6, 0.4), (0.2, 0.1), strict=True)
    ],
}
INPUTS = {
    "macs": np.array([0.3, 0.5, 0.6]),
    "reference": np.array([0.0, 0.1, 0.7]),
    "right": np.array([True, True, False]),
    "ratios": np.array([[0.5, 0.4], [0.2, 0.3], [0.0, 0.1]]),
    "gates": np.array(GROUPS),
    "budget": np.float64(0.5),
    "examples": np.arange(2 * 1 * 8 * 8, dtype=np.uint8).reshape(2, 1, 8, 8, 1),
    "examples_macs": np.array([[0.3], [0.6]]),
}
UPDATES = [
    {"round": number, "episodes": 10 * done, "macs": 0.5, "agrees": 0.9, "loss": 0.1, "price": 0.2}
    for number in (1, 2)
    for done in (1, 2)
]
PICTURES = ["Score against cost", "Learning", "Decisions", "What was taken where"]
INPUT_PICTURES = {
    "inputs": "What inputs cost",
    "difficulty": "Cost against difficulty",
    "examples": "Cheap and dear inputs",
    "ratios": "What the gates skipped",
    "learning": "Agreement and cost while learning",
}


class Page(HTMLParser):
    """What a browser makes of a page: its elements' attributes and its text, and that all is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.words)

    @property
    def images(self) -> dict[str, Image.Image]:
        marks = [dict(attributes) for tag, attributes in self.found if tag == "img"]
        data = {mark["alt"]: (mark["src"] or "").removeprefix("data:image/png;base64,") for mark in marks}
        return {name or "": Image.open(io.BytesIO(base64.b64decode(one))) for name, one in data.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in EPISODES))
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    (folder / "plan.json").write_text(json.dumps({"version": 2, "decisions": plan(0.3, 0.7)}))
    return folder


@pytest.fixture
def input_folder(folder: Path) -> Path:
    """The run's folder, of a run that learns to decide for each input."""
    (folder / "episodes.jsonl").unlink()
    config = {name: CONFIG[name] for name in ("model", "budget", "seed", "command")}
    (folder / "config.json").write_text(json.dumps({**config, "rounds": 2}))
    names = ["dense", "static", "fixed", "per-input"]
    record = {
        "rows": {name: row(0.9, 1_000_000) for name in names},
        "gated_groups": {"fixed": 2, "per-input": 2},
        "verdict": "per-input beats fixed",
        "plans": {name: plan(0.3, 0.7) for name in names[1:]},
    }
    (folder / "metrics.json").write_text(json.dumps(record))
    (folder / "updates.jsonl").write_text("".join(json.dumps(line) + "\n" for line in UPDATES))
    np.savez(folder / "inputs.npz", **INPUTS)
    return folder


@pytest.fixture
def report(run_cli, folder):
    def run(*flags: object) -> Page:
        outcome = run_cli("report", folder, *flags)
        assert outcome.code == 0, outcome.err
        assert "report.html" in outcome.err or flags
        return Page((folder / "report.html").read_text(encoding="utf-8"))

    return run


class TestAFinishedRun:
    def test_shows_its_figures(self, report):
        text = report().text
        for figure in ("75.00% (83.3%)", "0.480 M (48.0%)", "50,000 (50.0%)", "1.50 ms", "90.00%"):
            assert figure in text
        for words in (METRICS["verdict"], CONFIG["command"], f"{MODEL} at macs=0.5", "final policy"):
            assert words in text
        assert "90.00% (100.0%)" not in text
        assert "learned (2 groups)" in text
        assert "Not finished" not in text

    def test_shows_its_pictures(self, report):
        images = report().images
        assert list(images) == PICTURES
        assert all(min(image.size) > 100 for image in images.values())

    def test_shows_the_plan_and_what_speaks_for_it(self, report):
        text = report().text
        assert "The plan: learned" in text
        assert "conv1 was spared: 37% of its units, uniform 55%. It is sensitive" in text
        cells = text.split("The plan: learned")[1].split()
        assert cells[cells.index("conv1") :][:6] == ["conv1", "0.300", "0.100", "8", "60.0%", "20.0%"]

    def test_counts_the_evaluations(self, report):
        cells = report().text.split("Evaluations")[1].split()
        rows = [cells[-12:][start : start + 4] for start in (0, 4, 8)]
        assert rows == [
            ["uniform", "1", "0", "0.6000"],
            ["ppo", "3", "1", "0.7000"],
            ["random", "2", "0", "0.5500"],
        ]

    def test_is_one_file_that_fetches_nothing_and_runs_nothing(self, report, folder):
        page = report()
        assert page.open == []
        assert not {tag for tag, _ in page.found} & {"script", "link", "iframe", "object", "b", "i"}
        for _, attributes in page.found:
            assert "href" not in attributes
            assert (attributes.get("src") or "data:").startswith("data:")
        assert "http" not in (folder / "report.html").read_text().lower()
        assert "url(" not in (folder / "report.html").read_text()

    def test_goes_where_it_is_told(self, run_cli, folder, tmp_path):
        out = tmp_path / "elsewhere" / "page.html"
        assert run_cli("report", folder, "--out", out).code == 0
        assert PICTURES[0] in Page(out.read_text()).text
        assert not (folder / "report.html").exists()

    def test_writes_its_pictures_as_files_too(self, folder):
        write_pictures(folder)
        found = {path.name: path.read_bytes() for path in (folder / "pictures").iterdir()}
        assert set(found) == {"pareto.png", "reward.png", "heatmap.png", "bars.png"}
        assert {Image.open(io.BytesIO(data)).format for data in found.values()} == {"PNG"}

    def test_without_a_record_of_its_episodes_shows_the_rest(self, report, folder):
        (folder / "episodes.jsonl").unlink()
        page = report()
        assert list(page.images) == ["What was taken where"]
        assert "75.00%" in page.text


def test_a_run_in_progress_shows_what_is_there(report, folder):
    (folder / "metrics.json").unlink()
    (folder / "plan.json").unlink()
    with (folder / "episodes.jsonl").open("a") as file:
        file.write('{"by": "ppo", "pla')
    page = report()
    assert "Not finished" in page.text
    assert [*page.images, "What was taken where"] == PICTURES  # that wants the uniform plan
    assert "The plan: best so far" in page.text
    assert "Why" not in page.text


def test_a_run_that_just_began_is_told_as_such(report, folder):
    for path in folder.iterdir():
        if path.name != "config.json":
            path.unlink()
    page = report()
    assert "Not finished" in page.text
    assert page.images == {}


def test_several_networks_show_table_curves_and_front_alone(report, folder):
    rows = {f"{net} macs=0.5 {name}": row(0.5, 100) for net in "ab" for name in ("dense", "learned")}
    record = {"rows": rows, "gated_groups": {}, "verdict": "yes"}
    (folder / "metrics.json").write_text(json.dumps(record))
    (folder / "plan.json").unlink()
    page = report()
    assert list(page.images) == PICTURES[:2]
    assert "b macs=0.5 learned" in page.text
    assert "The plan" not in page.text


class TestARunThatDecidesForEachInput:
    def test_shows_its_pictures(self, report, input_folder):
        page = report()
        assert list(page.images) == list(INPUT_PICTURES.values())
        assert "per-input beats fixed" in page.text
        assert "per-input (2 groups)" in page.text

    def test_keeps_the_colours_of_images_on_a_dark_page(self, report, input_folder):
        marks = [dict(attributes) for tag, attributes in report().found if tag == "img"]
        assert [mark["alt"] for mark in marks if "class" in mark] == [INPUT_PICTURES["examples"]]

    def test_writes_its_pictures_as_files_too(self, input_folder):
        write_pictures(input_folder)
        found = {path.name: path.read_bytes() for path in (input_folder / "pictures").iterdir()}
        assert set(found) == {f"{name}.png" for name in INPUT_PICTURES}
        assert {Image.open(io.BytesIO(data)).format for data in found.values()} == {"PNG"}

    def test_in_progress_shows_how_it_learns(self, report, input_folder):
        for name in ("inputs.npz", "metrics.json", "plan.json"):
            (input_folder / name).unlink()
        with (input_folder / "updates.jsonl").open("a") as file:
            file.write('{"round": 2, "epis')
        page = report()
        assert "Not finished" in page.text
        assert list(page.images) == [INPUT_PICTURES["learning"]]
        assert read_run(input_folder)[0].macs_budget == 0.5

    def test_before_its_first_update_has_no_pictures(self, report, input_folder):
        for name in ("inputs.npz", "metrics.json", "plan.json"):
            (input_folder / name).unlink()
        (input_folder / "updates.jsonl").write_text('{"rou')
        assert report().images == {}

    @pytest.mark.parametrize(
        "line", ['{"round": 1, "epi', "[1]", "{}", json.dumps({**UPDATES[0], "macs": float("nan")}), "\xff"]
    )
    def test_a_damaged_update_is_named(self, refused, input_folder, line):
        good = json.dumps(UPDATES[0])
        (input_folder / "updates.jsonl").write_text(f"{good}\n{line}\n{good}\n", encoding="latin-1")
        said = refused("report", input_folder)
        assert "updates.jsonl is damaged" in said
        assert "line 2" in said

    def test_a_whole_last_update_of_another_shape_is_refused(self, refused, input_folder):
        (input_folder / "updates.jsonl").write_text('{"round": 1}')
        assert "line 1" in refused("report", input_folder)

    @pytest.mark.parametrize("size", [0, 10, 700, -30])
    def test_an_archive_cut_short_is_named(self, refused, input_folder, size):
        whole = (input_folder / "inputs.npz").read_bytes()
        (input_folder / "inputs.npz").write_bytes(whole[:size])
        assert "inputs.npz is damaged" in refused("report", input_folder)

    @pytest.mark.parametrize(
        ("name", "array", "words"),
        [
            ("macs", np.array([0.3, 0.5]), "reference is"),  # the next, of which there are three
            ("macs", np.array([0.3, np.nan, 0.5]), "macs is empty or not finite"),
            ("right", np.array([1.0, 0.0, 1.0]), "right is of kind float64"),
            ("ratios", np.zeros((3, 3)), "gates is"),
            ("gates", np.array([1, 2]), "gates is of kind int64"),
            ("gates", np.array(["a", None], dtype=object), "allow_pickle"),
            ("budget", np.array([0.5]), "budget is"),
            ("examples", np.zeros((2, 1, 8, 8), np.uint8), "examples is"),
            ("examples", np.zeros((2, 1, 8, 8, 2), np.uint8), "examples are of shape"),
            ("examples", np.zeros((2, 1, 8, 8, 1), np.uint16), "examples is of kind uint16"),
            ("examples", np.zeros((3, 1, 8, 8, 1), np.uint8), "examples_macs is"),
            ("examples_macs", np.zeros((2, 0)), "examples_macs is"),
        ],
    )
    def test_an_array_of_another_kind_or_shape_is_named(self, refused, input_folder, name, array, words):
        np.savez(input_folder / "inputs.npz", **{**INPUTS, name: array})
        said = refused("report", input_folder)
        assert "inputs.npz is damaged" in said
        assert words in said

    def test_an_archive_without_inputs_is_refused(self, refused, input_folder):
        none = {name: INPUTS[name][:0] for name in ("macs", "reference", "right", "ratios")}
        np.savez(input_folder / "inputs.npz", **{**INPUTS, **none})
        assert "macs is empty" in refused("report", input_folder)

    def test_a_third_row_of_examples_is_refused(self, refused, input_folder):
        three = {"examples": np.zeros((3, 1, 8, 8, 1), np.uint8), "examples_macs": np.zeros((3, 1))}
        np.savez(input_folder / "inputs.npz", **{**INPUTS, **three})
        assert "examples are of shape" in refused("report", input_folder)

    @pytest.mark.parametrize("name", INPUTS)
    def test_an_array_that_is_missing_is_named(self, refused, input_folder, name):
        np.savez(input_folder / "inputs.npz", **{key: INPUTS[key] for key in INPUTS if key != name})
        assert name in refused("report", input_folder)


def test_a_real_run_has_a_page(run_cli, finished_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    assert run_cli("report", folder).code == 0
    page = Page((folder / "report.html").read_text())
    assert "at macs=0.5" in page.text
    assert json.loads((folder / "metrics.json").read_text())["verdict"] in page.text


def test_a_folder_that_is_not_there_is_refused(refused, tmp_path):
    assert "there is no folder" in refused("report", tmp_path / "nowhere")


def test_a_folder_in_place_of_the_page_is_refused(refused, folder, tmp_path):
    assert "is a folder" in refused("report", folder, "--out", tmp_path)


def test_a_folder_that_holds_no_run_is_refused(refused, folder):
    (folder / "config.json").unlink()
    assert "holds no run" in refused("report", folder)


def test_an_episode_that_is_damaged_is_refused(refused, folder):
    lines = (folder / "episodes.jsonl").read_text().splitlines()
    (folder / "episodes.jsonl").write_text("\n".join([lines[0], lines[1][:40], *lines[2:]]))
    assert "episodes.jsonl: line 2" in refused("report", folder)


@pytest.mark.parametrize("name", ["config.json", "metrics.json", "plan.json"])
@pytest.mark.parametrize("content", ["", '{"rows": ', "[1]", "\xff"])
def test_a_damaged_file_is_named(refused, folder, name, content):
    (folder / name).write_text(content, encoding="latin-1")
    assert name in refused("report", folder)


def test_an_amount_of_the_plan_that_makes_no_sense_is_refused(refused, folder):
    CompressionPlan({"conv1": {"static_ratio": 2.0}}).save(folder / "plan.json")
    assert "plan.json: site 'conv1': static_ratio must lie in [0, 1)" in refused("report", folder)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": {"dense": {"accuracy": "high"}}},
        {"rows": []},
        {"plans": {"learned": {"conv1": {"static_ratio": 2.0}}}},
        {"sites": [{"name": "conv1"}]},
        {"sites": [{**METRICS["sites"][0], "errors": [0.1]}]},
        {"gated_groups": {"learned": None}},
        {"sites": [{**METRICS["sites"][0], "macs_share": 10**400}]},
        {"rows": {"dense": {"accuracy": 10**400, "macs": 5}}},
        {"rows": {"dense": {"accuracy": 0.5, "macs": 0}}},
        {"rows": {"dense": {"accuracy": 0.5}}},
        {"verdict": "\udcff"},
    ],
)
def test_metrics_of_another_shape_are_refused(refused, folder, change):
    (folder / "metrics.json").write_text(json.dumps({**METRICS, **change}))
    assert refused("report", folder)
