from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from prunegym.pruning.data import KINDS, absolute, load_splits
from prunegym.pruning.errors import DataError, UnknownNameError
from prunegym.pruning.networks.registry import NetworkSpec

GREY = NetworkSpec("grey", nn.Identity, (1, 4, 5), (0.0,), (1.0,))


def test_an_unknown_kind_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'digits'"):
        load_splits("digit", GREY)


@pytest.mark.parametrize("spec", ["npz", "npz:", "", "digits:extra", "folder", "cifar10:"])
def test_half_a_specification_is_refused(spec):
    with pytest.raises(UnknownNameError):
        load_splits(spec, GREY)


@pytest.mark.parametrize("kind", [name for name in KINDS if ":" in name])
def test_every_kind_says_what_place_is_missing_and_knows_ones_home(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match=str(tmp_path / "absent")) as caught:
        load_splits(f"{kind.partition(':')[0]}:~/absent", GREY)
    assert "\n" not in str(caught.value)


def test_a_name_reads_in_any_working_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert absolute("npz:some/images.npz") == f"npz:{Path.cwd()}/some/images.npz"
    assert absolute("folder:/images") == "folder:/images"
    assert [absolute(name) for name in ("digits", "none")] == ["digits", "none"]
