"""The page of a run, from folders as `train` writes them, finished or not."""

from __future__ import annotations

import base64
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from scripts.report import write_pictures

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
    sizes = {"accuracy": score, "macs": 0.5, "params": 0.5}
    return {"by": by, "plan": plan(static, 1 - static), "reward": reward, **sizes}


CONFIG = {
    "model": MODEL,
    "budget": ["macs=0.5"],
    "algo": "ppo",
    "episodes": 2,
    "seed": 0,
    "command": "secateur train --model 'nets<b>.py:make'",
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
    "groups": [
        {"name": name, "units": 8, "macs_share": share, "params_share": 0.1, "errors": [0.01, loss, 0.3]}
        for name, share, loss in zip(GROUPS, (0.6, 0.4), (0.2, 0.1), strict=True)
    ],
}
PICTURES = ["Score against cost", "Learning", "Decisions", "What was taken where"]


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
    (folder / "plan.json").write_text(json.dumps({"version": 1, "decisions": plan(0.3, 0.7)}))
    return folder


@pytest.fixture
def report(secateur, folder):
    def run(*flags: object) -> Page:
        outcome = secateur("report", folder, *flags)
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

    def test_goes_where_it_is_told(self, secateur, folder, tmp_path):
        out = tmp_path / "elsewhere" / "page.html"
        assert secateur("report", folder, "--out", out).code == 0
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
    assert list(page.images) == PICTURES
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


def test_a_real_run_has_a_page(secateur, finished_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    assert secateur("report", folder).code == 0
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


@pytest.mark.parametrize(
    "change",
    [
        {"rows": {"dense": {"accuracy": "high"}}},
        {"rows": []},
        {"plans": {"learned": {"conv1": {"static_ratio": 2.0}}}},
        {"groups": [{"name": "conv1"}]},
        {"groups": [{**METRICS["groups"][0], "errors": [0.1]}]},
        {"gated_groups": {"learned": None}},
    ],
)
def test_metrics_of_another_shape_are_refused(refused, folder, change):
    (folder / "metrics.json").write_text(json.dumps({**METRICS, **change}))
    assert refused("report", folder)
