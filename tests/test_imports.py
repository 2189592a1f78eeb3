"""The direction of imports, and the names of modules."""

import ast
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STACK = ("pruning", "envs", "agents", "scripts")  # each may import itself and those before it
FOREIGN = {  # packages of others that one of ours must not know
    "pruning": {"gymnasium", "stable_baselines3", "tensorboard"},
    "envs": {"stable_baselines3", "tensorboard"},
    "agents": {"torchvision", "timm", "sklearn"},
    "scripts": set(),
}
MODULES = sorted(path for package in STACK for path in (ROOT / package).rglob("*.py"))
EVERYTHING = [*MODULES, *sorted((ROOT / "tests").rglob("*.py")), ROOT / "prunegym" / "__init__.py"]


def imports(path: Path) -> set[str]:
    """Return the full names of all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide their package"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def of_ours(path: Path) -> set[tuple[str, ...]]:
    """Return what a file imports of this project, each as the parts of its name after `prunegym`."""
    return {tuple(name.split(".")[1:]) for name in imports(path) if name.split(".")[0] == "prunegym"}


def module_name(path: Path) -> str:
    """Return the name by which a file of this project is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("prunegym", *parts)).removesuffix(".__init__")


def nearest_module(imported: str, names: Mapping[str, Path]) -> str | None:
    """Return the module that an imported name is, or that it comes from; None if it is not one of ours."""
    if imported in names:
        return imported
    package = imported.rpartition(".")[0]
    return package if package in names else None


def rooms(package: str) -> dict[str, set[str]]:
    """Return, for each folder of a package, the folders of the same package whose modules it imports."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / package).rglob("*.py"):
        room = path.relative_to(ROOT / package).parts[0]
        if room.endswith(".py"):
            continue
        others = {parts[1] for parts in of_ours(path) if parts[0] == package and len(parts) > 1}
        found.setdefault(room, set()).update(others)
    return {room: (others & set(found)) - {room} for room, others in found.items()}


def test_there_are_modules_of_every_package():
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(STACK)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_its_package_may_know(path):
    package = path.relative_to(ROOT).parts[0]
    below = STACK[: STACK.index(package) + 1]
    assert {parts[0] for parts in of_ours(path)} <= set(below)
    foreign = {name.partition(".")[0] for name in imports(path)}
    assert not foreign & FOREIGN[package]
    assert "tests" not in foreign


def test_nothing_is_imported_by_a_bare_name_that_another_project_may_have():
    bare = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in EVERYTHING
        for name in imports(path)
        if name.partition(".")[0] in STACK
    }
    assert not bare


@pytest.mark.parametrize("package", STACK)
def test_the_folders_of_a_package_do_not_import_each_other_in_a_circle(package):
    left = rooms(package)
    while left:
        lowest = [room for room, others in left.items() if not others & set(left)]
        assert lowest, f"these import each other: {left}"
        left = {room: others for room, others in left.items() if room not in lowest}


def test_no_modules_import_each_other_in_a_circle():
    names = {module_name(path): path for path in MODULES}
    left = {
        name: {target for imported in imports(path) if (target := nearest_module(imported, names))} - {name}
        for name, path in names.items()
    }
    while left:
        lowest = [name for name, others in left.items() if not others & set(left)]
        assert lowest, f"these import each other: {sorted(left)}"
        left = {name: others for name, others in left.items() if name not in lowest}


@pytest.mark.parametrize("package", STACK)
def test_a_package_has_a_handful_of_modules_at_its_root(package):
    assert len([path for path in (ROOT / package).glob("*.py") if path.name != "__init__.py"]) <= 18


def test_every_module_has_a_name_that_says_something():
    assert not {path.stem for path in MODULES} & {"utils", "util", "helpers", "helper", "common", "misc"}


def test_no_script_hides_a_module_of_the_standard_library():
    assert not {path.stem for path in (ROOT / "scripts").rglob("*.py")} & set(sys.stdlib_module_names)


def test_parsed_flags_are_known_to_the_options_alone():
    # others' flags may lie in a file of weights
    known = (ROOT / "scripts" / "options", ROOT / "pruning" / "networks" / "weights.py")
    beyond = [path for path in MODULES if path.parent not in known and path not in known]
    assert not {
        str(path.relative_to(ROOT)) for path in beyond if "argparse" in path.read_text(encoding="utf-8")
    }


def test_what_draws_nothing_does_not_wait_for_matplotlib():
    code = "import sys, prunegym.agents, prunegym.scripts.train; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_decisions_are_plain_data_without_torch():
    names = imports(ROOT / "pruning" / "plan.py") | imports(ROOT / "pruning" / "files" / "plain_data.py")
    assert "torch" not in {name.partition(".")[0] for name in names}
