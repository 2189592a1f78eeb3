"""What every test may rely on: the same random numbers, one thread, and nothing of the user's own."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# the same examples in every run: a check that fails must fail for the change that broke it
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

DATA = Path(os.environ.get("PRUNEGYM_DATA") or Path(__file__).parents[2] / "shared" / "data")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks this small only lose time to a second thread
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def _nothing_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hide the user's home, caches, locale and terminal, also from the processes that tests start."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # one for all workers: the digits network is trained once
        folder = folder.parent
    home = folder / "home"
    home.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
            patch.delenv(name, raising=False)
        for name in [name for name in os.environ if name.startswith("LC_") or name == "LANGUAGE"]:
            patch.delenv(name)
        patch.setenv("LANG", "C.UTF-8")
        patch.setenv("HOME", str(home))
        patch.setenv("PRUNEGYM_CACHE", str(folder / "cache"))
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)  # whatever ran before, in whichever process


@pytest.fixture
def data_file() -> Callable[[str], Path]:
    """Return a function that gives the path of a real image or weight file, or skips where it is missing."""

    def find(name: str) -> Path:
        if not (DATA / name).is_file():
            pytest.skip(f"{DATA / name} is missing; PRUNEGYM_DATA names the folder that holds it")
        return DATA / name

    return find
