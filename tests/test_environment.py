"""No test depends on who runs it, nor on what another test left in the cache."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prunegym.pruning.files.cache import cache_folder
from prunegym.pruning.files.plain_data import write_json

USERS = {
    "HOME": "/nonexistent",
    "COLUMNS": "40",
    "LINES": "5",
    "LC_ALL": "de_DE.UTF-8",
    "LANGUAGE": "de",
    "FORCE_COLOR": "1",
    "TQDM_DISABLE": "1",
    "MPLBACKEND": "pdf",
    "XDG_CACHE_HOME": "/nonexistent",
    "PRUNEGYM_CACHE": "/nonexistent",
    "OMP_NUM_THREADS": "7",
}


def test_what_a_test_sees_is_the_same_for_all():
    assert Path.home().is_dir()
    assert shutil.get_terminal_size() == (80, 24)
    assert not [name for name in os.environ if name.startswith(("LC_", "XDG_", "TQDM_", "MPL"))]
    assert not {"LANGUAGE", "FORCE_COLOR", "NO_COLOR"} & set(os.environ)
    assert torch.get_num_threads() == 1
    assert os.environ["OMP_NUM_THREADS"] == os.environ["OPENBLAS_NUM_THREADS"] == "1"


@pytest.mark.parametrize("number", [1, 2])
def test_each_test_has_an_empty_cache_of_its_own(number):
    assert not cache_folder().exists()
    write_json(cache_folder() / "entry.json", number)


@pytest.mark.runs
def test_that_holds_whatever_the_users_environment_is():
    command = [sys.executable, "-m", "pytest", __file__, "-p", "no:cacheprovider", "-m", "not runs"]
    environment = {**os.environ, **USERS}
    environment = {name: text for name, text in environment.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
