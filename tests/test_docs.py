"""What the README and the pages of docs/ name exists, and the README's examples run as they are written."""

import functools
import importlib
import re
import subprocess
from contextlib import suppress
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prunegym.pruning.criteria import filters
from prunegym.pruning.networks.registry import resolve_network
from prunegym.pruning.registry import Registry
from prunegym.scripts.cli import VERBS
from prunegym.scripts.options.parser import Parser
from tests.pruning.test_plain_torch import LOADER

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
FORMER_NAME = "secat" + "eur"  # in two parts: this file is searched for it too
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


class Caught(Exception):
    """A verb has made its parser."""


@functools.cache
def parsers():
    """The parser of each verb, by name."""
    found = {}

    def catch(self, argv):
        found[self.prog.removeprefix("prunegym ")] = self
        raise Caught

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parser, "parse", catch)
        for verb in VERBS:
            with suppress(Caught):
                importlib.import_module(f"prunegym.scripts.{verb.replace('-', '_')}").run([])
    return found


def pieces(text):
    """Commands and the like, each on one line: lines of code blocks without a language, and code in prose."""
    for language, block in FENCED.findall(text):
        if not language:
            yield from re.sub(r"\s+#.*", "", block.replace("\\\n", " "), flags=re.MULTILINE).splitlines()
    for code in re.findall(r"`([^`]+)`", FENCED.sub("", text)):
        yield " ".join(code.split())


def use(piece):
    """The verb that a piece names, if any, and its words from there on; None if it is not about prunegym."""
    for marker in ("prunegym.scripts.", "prunegym "):
        if marker in piece:
            verb, *words = piece.partition(marker)[2].split()
            return verb.replace("_", "-"), words
    first, *words = piece.split() or [""]
    if first in VERBS:
        return first, words
    return (None, [first, *words]) if first.startswith("--") or "=" in first else None


def unknown(text):
    """The verbs, flags and benchmarks that a page names and the command does not have."""
    flags = {verb: set(parser._option_string_actions) for verb, parser in parsers().items()}
    anywhere = set().union(*flags.values())
    benchmarks = parsers()["benchmark"]._positionals._group_actions[0].choices
    for piece in pieces(text):
        verb, words = use(piece) or (None, [])
        if verb not in (None, "VERB", *VERBS):
            yield f"{piece}: {verb}"
        if verb == "benchmark" and words and words[0] not in benchmarks:
            yield f"{piece}: {words[0]}"
        for flag in re.findall(r"(?<!\S)\[?(--[\w-]+)", " ".join(words)):
            if flag not in flags.get(verb, anywhere):
                yield f"{piece}: {flag}"


def python(page, *, holding=""):
    """The Python blocks of a page in which these words stand."""
    blocks = FENCED.findall(page.read_text(encoding="utf-8"))
    return [block for language, block in blocks if language == "python" and holding in block]


def example(holding):
    """The README's only Python block in which these words stand."""
    (block,) = python(README, holding=holding)
    return block


def tracked():
    """The files under version control; what is not a checkout is not searched."""
    try:
        names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a checkout")
    return [ROOT / name for name in names.decode().split("\0") if name]


@every_page
def test_the_verbs_and_flags_of_commands_exist(page):
    assert not list(unknown(page.read_text(encoding="utf-8")))


def test_verbs_and_flags_are_seen_in_blocks_and_in_prose():
    text = """
```
prunegym trian --out a  # --no-such-flag in a comment
prunegym prune --allocation uniform \\
    --episodes 3
accelerate launch --module prunegym.scripts.finetune --epoch 2
pip install --upgrade pip
```
With `--resumee`, `benchmark envs` or `train
--static-ratio 1`; not `torchrun --nproc_per_node 4`, but `python -m prunegym.scripts.train_per_input --algo`.
"""
    wrong = [line.rpartition(": ")[2] for line in unknown(text)]
    assert wrong == ["trian", "--episodes", "--epoch", "--resumee", "envs", "--static-ratio", "--algo"]


@every_page
def test_modules_are_named_as_they_are_imported(page):
    text = page.read_text(encoding="utf-8")
    for name in sorted(set(re.findall(r"\bprunegym(?:\.\w+)+", text))):
        parts = name.split(".")
        found = importlib.import_module("prunegym")
        for depth, part in enumerate(parts[1:], 2):
            with suppress(ModuleNotFoundError):
                importlib.import_module(".".join(parts[:depth]))
            assert hasattr(found, part), f"{page.name} names {name}"
            found = getattr(found, part)
    packages = "(?:pruning|envs|agents|scripts)"
    assert not re.findall(rf"(?:^|`)(?:import|from) {packages}\b.*|[` ]{packages}\.\w+", text, re.MULTILINE)


@every_page
def test_files_folders_and_environments_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(
        r"(?<![\w./-])((?:pruning|envs|agents|scripts|tests|docs|prunegym)/[\w./*-]*)", text
    ):
        exists = name in gym.registry or list(ROOT.glob(name.rstrip("./")))
        assert exists, f"{page.name} names {name}"


def test_the_folders_of_the_layout_exist():
    folders = {part for path in tracked() for part in path.relative_to(ROOT).parts[:-1]}
    layout = README.read_text(encoding="utf-8").partition("\n## Layout\n")[2].partition("\n## ")[0]
    named = re.findall(r"\b(\w+)/(?=[\s,;:)])", layout)
    assert len(named) > 10
    assert set(named) <= folders


@every_page
def test_targets_of_make_exist(page):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for piece in pieces(page.read_text(encoding="utf-8")):
        if target := re.match(r"make ([\w-]+)", piece):
            assert target[1] in targets, piece


@every_page
def test_links_within_the_repository_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.is_file(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, f"{page.name} links to {target}"


def test_the_former_name_stands_in_one_line_of_the_changelog_alone():
    found = []
    for path in tracked():
        assert FORMER_NAME not in str(path.relative_to(ROOT)).lower()
        if path.is_symlink() or not path.is_file():
            continue
        data = path.read_bytes()
        if b"\0" not in data:
            lines = data.decode(errors="replace").lower().splitlines()
            found += [path.name for line in lines if FORMER_NAME in line]
    assert found == ["CHANGELOG.md"]


class TestExamplesOfTheReadme:
    @pytest.fixture
    def names(self):
        """The names that the examples take as given: a small network and batches of its images."""
        images = torch.randn(40, 1, 6, 6, generator=torch.Generator().manual_seed(1))
        net = nn.Sequential(
            *(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 10, 3), nn.BatchNorm2d(10), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(40, 3)),
        ).eval()
        with torch.no_grad():
            labels = net(images).argmax(1)
        loader = DataLoader(TensorDataset(images, labels), batch_size=16)
        return {"net": net, "loader": loader, "held_out": loader, "mean_precision": lambda model: 0.5}

    def test_compress(self, names):
        code = example("episodes=200")
        exec(code.replace("episodes=200", "episodes=3"), names)
        assert names["small"](torch.zeros(2, 1, 6, 6)).shape == (2, 3)
        sizes = [sum(parameter.numel() for parameter in names[key].parameters()) for key in ("small", "net")]
        assert sizes[0] < sizes[1]

    def test_compress_by_a_score_and_finetune(self, names):
        code = example("finetune_(")
        assert code.count('budget={"macs": 0.5}') == 1
        exec(code.replace('budget={"macs": 0.5}', 'budget={"macs": 0.5}, episodes=3'), names)
        assert names["small"](torch.zeros(2, 1, 6, 6)).shape == (2, 3)

    def test_environments(self, names, monkeypatch):
        untrained = resolve_network("digits_resnet").build()
        monkeypatch.setattr("prunegym.envs.tasks.dense_digits", lambda **_: untrained)
        by_task, by_model = re.split(r"^(?=env = )", example("gym.make"), flags=re.MULTILINE)[1:]
        given = example("gym.make").partition("env = ")[0]
        for code, groups in ((by_task, 9), (by_model, 2)):
            exec(given + code, names)
            env = names["env"]
            env.reset(seed=0)
            assert len(env.unwrapped.site_names) == groups
            for _ in range(groups):
                _, _, terminated, _, info = env.step(env.action_space.sample() * 0)
            assert terminated
            assert info["episode_result"]["shares"]["macs"] <= 0.5

    def test_a_criterion(self, names):
        criteria = Registry("criterion")
        exec(example("@CRITERIA.register"), {**vars(filters), "CRITERIA": criteria})
        assert list(criteria) == ["l2"]

    def test_what_opens_a_folder_in_plain_torch_is_the_tested_function(self):
        function = LOADER.partition("def open_compressed")[2].strip()
        assert function in example("def open_compressed")


def test_python_blocks_are_code():
    for page in PAGES:
        for block in python(page):
            compile(block, page.name, "exec")
