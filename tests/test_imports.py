"""The direction of imports (docs: each package's place in the flow) and the names of modules."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {  # ours, beside itself
    "pruning": set(),
    "envs": {"pruning"},
    "agents": set(),
    "scripts": {"pruning", "envs", "agents"},
}
FOREIGN = {  # that a package must not know
    "pruning": {"gymnasium", "stable_baselines3", "tensorboard"},
    "envs": {"stable_baselines3", "tensorboard"},
    "agents": {"torchvision", "timm", "sklearn"},
    "scripts": set(),
}
MODULES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The first names of all that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide their package"
            found.add((node.module or "").partition(".")[0])
    return found


def test_there_are_modules_of_every_package():
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
class TestEveryModule:
    def test_imports_only_what_its_package_may_know(self, path):
        package = path.relative_to(ROOT).parts[0]
        ours = imported(path) & set(MAY_IMPORT) - {package}
        assert ours <= MAY_IMPORT[package]
        assert not imported(path) & FOREIGN[package]
        assert "tests" not in imported(path)

    def test_has_a_name_that_says_something(self, path):
        assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc"}


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.stem)
def test_no_script_hides_a_module_of_the_standard_library(path):
    assert path.stem not in sys.stdlib_module_names


def test_what_draws_nothing_does_not_wait_for_matplotlib():
    code = "import sys, agents, scripts.cli, scripts.train; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_decisions_are_plain_data_without_torch():
    assert "torch" not in imported(ROOT / "pruning" / "plan.py") | imported(ROOT / "pruning" / "files.py")
