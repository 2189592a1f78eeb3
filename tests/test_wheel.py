"""What a user installs: one package, whole, which gets along with any folder that it is used in."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.runs

ROOT = Path(__file__).parents[1]
FOLDERS = ("agents", "envs", "pruning", "scripts")
OWN_NETWORK = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        layers = nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Conv2d(7, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        super().__init__(*layers, nn.Linear(5, 4))
"""
WHERE_FROM = """
import json
import prunegym, prunegym.agents, prunegym.envs, prunegym.pruning.data, prunegym.scripts.train
import agents.models, envs.models, pruning.models, scripts.models
parts = prunegym, prunegym.agents, prunegym.pruning.data, prunegym.scripts.train
ours = [module.__file__ for module in parts]
theirs = [module.models.__file__ for module in (agents, envs, pruning, scripts)]
print(json.dumps([ours, theirs, prunegym.agents.BUILTIN.is_dir()]))
"""


def run(*command, folder):
    """Return what a command prints; it finds packages only where it is installed and in its folder."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(part) for part in command]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The path of the wheel, built from a copy: what was built before leaves no trace in it."""
    source = tmp_path_factory.mktemp("source")
    for name in ("prunegym", *FOLDERS):
        shutil.copytree(
            ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    run(sys.executable, "-c", build, folder=source)
    (built,) = (source / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The commands of a virtual environment that has the wheel, and others' packages from this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    given = sysconfig.get_paths()
    packages = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder
    ).strip()
    # in this way the other environment's own .pth files are not read, nor so what was installed as editable
    Path(packages, "others.pth").write_text("\n".join(dict.fromkeys([given["purelib"], given["platlib"]])))
    install = ["-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps"]
    run(sys.executable, *install, wheel, folder=folder)
    return folder / "bin"


@pytest.fixture(params=[True, False], ids=["packages", "folders"])
def work(request, tmp_path):
    """A folder that has the same folders as this project, with or without `__init__.py`, and a network."""
    for name in FOLDERS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "models.py").write_text(OWN_NETWORK)
        if request.param:
            (tmp_path / name / "__init__.py").touch()
    (tmp_path / "mynet.py").write_text("from agents.models import Net\n\ndef make():\n    return Net()\n")
    return tmp_path


def test_it_holds_one_package_with_all_its_files(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    ours, (metadata,) = (
        {name.partition("/")[0] for name in names if (".dist-info" in name) == is_metadata}
        for is_metadata in (False, True)
    )
    assert ours == {"prunegym"}
    assert metadata.startswith("prunegym-")
    held = {name for name in names if name.startswith("prunegym/")}
    files = {
        f"prunegym/{path.relative_to(ROOT)}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == files | {"prunegym/__init__.py", "prunegym/py.typed"}
    suffixes = {Path(name).suffix for name in held}
    assert {".yaml", ".safetensors", ".json"} <= suffixes


def test_it_is_imported_beside_folders_of_the_same_names(installed, work):
    ours, theirs, has_policy = json.loads(run(installed / "python", "-c", WHERE_FROM, folder=work))
    assert all(Path(file).is_relative_to(installed.parent) for file in ours)
    assert theirs == [str(work / name / "models.py") for name in FOLDERS]
    assert has_policy


def units(printed):
    return {group["name"]: group["units"] for group in json.loads(printed)["groups"]}


@pytest.mark.parametrize("where", ["installed", "as a script", "as a module"])
def test_a_network_whose_file_imports_its_own_folders_loads(installed, work, where):
    """From the wheel, and for one who works in a checkout, whose folders are on the path then."""
    command = {
        "installed": [installed / "prunegym", "describe"],
        "as a script": [sys.executable, "scripts/describe.py"],
        "as a module": [sys.executable, "-m", "prunegym.scripts.describe"],
    }[where]
    asked = ["--model", work / "mynet.py:make", "--input-size", 3, 16, 16, "--json"]
    printed = run(*command, *asked, folder=work if where == "installed" else ROOT)
    assert units(printed) == {"0": 7, "2": 5, "5": 4}


def test_the_command_works_in_any_folder(installed, tmp_path):
    assert run(installed / "prunegym", "--help", folder=tmp_path).startswith("usage: prunegym VERB")
    assert len(units(run(installed / "prunegym", "describe", "--json", folder=tmp_path))) == 10
