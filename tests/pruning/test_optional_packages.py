import subprocess
import sys

import pytest
import torch

from prunegym.pruning import optional_packages
from prunegym.pruning.errors import PruningError
from prunegym.pruning.networks.registry import resolve_network


def refusal(module: str) -> str:
    with pytest.raises(PruningError) as caught:
        optional_packages.imported(module, extra="zoo", purpose="pictures of cats")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_there_is_imported():
    assert optional_packages.imported("torch.nn", extra="zoo", purpose="networks") is torch.nn


@pytest.mark.parametrize("zoo", ["torchvision", "timm"])
def test_a_missing_zoo_names_the_extra_to_install(zoo, monkeypatch):
    for module in (zoo, f"{zoo}.models"):
        monkeypatch.setitem(sys.modules, module, None)  # makes the import fail
    with pytest.raises(PruningError, match="networks by a zoo's name need") as caught:
        resolve_network(f"{zoo}/resnet18")
    assert 'pip install "prunegym[zoo]"' in str(caught.value)


def test_a_package_compiled_for_another_torch_says_so(monkeypatch):
    def fail(module):
        raise RuntimeError("compiled with\nanother ABI")

    monkeypatch.setattr(optional_packages.importlib, "import_module", fail)
    said = refusal("torchvision.models")
    assert "torchvision does not fit the installed torch (compiled with another ABI)" in said


def test_an_operator_is_declared_once(monkeypatch):
    asked = []

    def fail(module):
        asked.append(module)
        raise RuntimeError("operator torchvision::no_such_operator does not exist")

    monkeypatch.setattr(optional_packages.importlib, "import_module", fail)
    assert "does not fit the installed torch" in refusal("torchvision")
    assert asked == ["torchvision", "torchvision"]
    assert torch.ops.torchvision.no_such_operator is not None


def test_torchvision_loads_without_its_compiled_half():
    script = """
import torch
def refuse(path):
    raise OSError("not built for this torch")
torch.ops.load_library = refuse
from prunegym.pruning.optional_packages import imported
models = imported("torchvision.models", extra="zoo", purpose="networks")
assert models.resnet18().eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=120)
