"""A user's file sees its own neighbours, whatever else goes by their names, and hides no library."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from prunegym.pruning.errors import PruningError
from prunegym.pruning.user_functions import _is_library, named_function, running_users_code

ROOT = Path(__file__).parents[2]
EAGER = "from agents.models import NUMBER\ndef make():\n    return NUMBER\n"
LAZY = "def make():\n    from agents.models import NUMBER\n    return NUMBER\n"


@pytest.fixture(autouse=True)
def _imports_as_before(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        del sys.modules[name]
    sys.modules.update(before)


def project(folder, number, *, file=EAGER, package=True):
    """A folder with `net.py`, and with a package `agents` of its own that gives the number."""
    (folder / "agents").mkdir(parents=True)
    if package:
        (folder / "agents" / "__init__.py").touch()
    (folder / "agents" / "models.py").write_text(f"NUMBER = {number}\n")
    (folder / "net.py").write_text(file)
    return f"{folder / 'net.py'}:make"


def run_as_script(monkeypatch, path):
    """Let things stand as while Python runs this script."""
    main = ModuleType("__main__")
    main.__file__, main.__spec__ = str(path), None
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.syspath_prepend(str(path.parent))


@pytest.mark.parametrize("file", [EAGER, LAZY])
@pytest.mark.parametrize("package", [True, False])
@pytest.mark.parametrize("imported", [True, False])
def test_a_package_beside_the_file_comes_before_this_projects_folder(
    tmp_path, monkeypatch, file, package, imported
):
    monkeypatch.syspath_prepend(str(ROOT))
    if imported:
        __import__("agents")
    assert named_function(project(tmp_path, 7, file=file, package=package))() == 7


@pytest.mark.parametrize("file", [EAGER, LAZY])
@pytest.mark.parametrize("package", [True, False])
def test_files_of_two_folders_have_each_their_own(tmp_path, file, package):
    specs = [project(tmp_path / str(i), i, file=file, package=package) for i in range(3)]
    functions = [named_function(spec) for spec in specs]
    assert [function() for function in functions] == [0, 1, 2]
    assert [function() for function in functions] == [0, 1, 2]
    modules = [sys.modules[function.args[1].__module__] for function in functions]
    assert [Path(module.__file__).parent.name for module in modules] == ["0", "1", "2"]


def test_a_module_of_the_caller_has_its_name_again(tmp_path, monkeypatch):
    project(tmp_path / "caller", 1)
    run_as_script(monkeypatch, tmp_path / "caller" / "main.py")
    mine = __import__("agents.models")
    assert named_function(project(tmp_path / "other", 2))() == 2
    assert sys.modules["agents"] is mine
    assert sys.modules["agents.models"] is mine.models
    assert mine.models.NUMBER == 1


def test_a_module_of_the_same_folder_is_not_executed_again(tmp_path, monkeypatch):
    spec = project(tmp_path, 1, file="from agents.models import NUMBERS as make\n")
    (tmp_path / "agents" / "models.py").write_text("class NUMBERS: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert isinstance(named_function(spec)(), __import__("agents.models").models.NUMBERS)


@pytest.mark.parametrize("library", ["torch", "colorsys", "yaml", "prunegym"])
def test_a_file_hides_no_library(tmp_path, monkeypatch, library):
    if library in ("colorsys", "yaml"):  # as if nothing had needed it before
        monkeypatch.delitem(sys.modules, library, raising=False)
    (tmp_path / f"{library}.py").write_text("raise ImportError('the neighbour')")
    (tmp_path / "net.py").write_text(f"import {library}\ndef make():\n    return {library}.__file__\n")
    assert not named_function(f"{tmp_path / 'net.py'}:make")().startswith(str(tmp_path))


def test_a_module_is_looked_for_in_the_working_folder_first(tmp_path, monkeypatch):
    run_as_script(monkeypatch, ROOT / "scripts" / "train.py")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report.py").write_text("def score(model):\n    return 3.0\n")
    assert named_function("report:score")(None) == 3.0
    assert named_function("math:sqrt")(9.0) == 3.0


def test_a_function_that_removes_the_working_folder_can_be_called_again(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", [*sys.path, ""])
    remove = f"shutil.rmtree({str(tmp_path / 'here')!r}, ignore_errors=True)"
    (tmp_path / "net.py").write_text(f"import shutil\ndef f():\n    {remove}\n")
    function = named_function(f"{tmp_path / 'net.py'}:f")  # the working folder is on the import path
    function()
    assert not _is_library("no_such_module")
    function()


def test_torchs_default_numbers_are_what_they_were():
    with running_users_code(PruningError):
        torch.set_default_dtype(torch.float64)
    assert torch.get_default_dtype() == torch.float32
