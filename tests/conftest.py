"""What every test may rely on: the same random numbers, one thread, and nothing of the user's own.

There are three tiers of tests. `make test` runs all of them.

- unit: what has no mark. A developer's first answer: a few minutes on two cores, `make test-unit`.
- `conformance`: all example networks by all methods, `make test-conformance`.
- `runs`: whole commands, most of them in processes of their own; runs that are killed and go on, Ray,
  accelerate, the installed wheel, `make test-runs`.

Beside them `slow` and `gpu` mark what `make test` leaves out.
"""

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

# Before anything reads its environment: homes and caches, locale, colours, widths and numbers of threads
# are not the user's, here and in the processes that tests start. Workers of xdist get the environment of the
# process that started them, and share its home.
KEPT = (
    *("PATH", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CUDA_VISIBLE_DEVICES", "PRUNEGYM_DATA"),
    *("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE"),
)
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if not IS_WORKER:
    for name in list(os.environ):
        if name not in KEPT and not name.startswith(("PYTEST_", "COV")):
            del os.environ[name]
    os.environ.update({"HOME": tempfile.mkdtemp(prefix="prunegym-tests-"), "LANG": "C.UTF-8", "TERM": "dumb"})
    os.environ.update({"COLUMNS": "80", "LINES": "24", **dict.fromkeys(THREADS, "1")})

import pytest
import torch
from hypothesis import settings

# the same examples in every run: a check that fails must fail for the change that broke it
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

DATA = Path(os.environ.get("PRUNEGYM_DATA") or Path(__file__).parents[2] / "shared" / "data")


def pytest_unconfigure() -> None:
    """Remove the home that all tests had."""
    if not IS_WORKER:
        shutil.rmtree(Path.home(), ignore_errors=True)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks this small only lose time to a second thread
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield one path after the other, at which there is nothing yet."""
    folder = tmp_path_factory.mktemp("caches")
    return (folder / str(i) for i in itertools.count())


@pytest.fixture(autouse=True, scope="module")
def _cache_of_the_module(_caches: Iterator[Path]) -> Iterator[None]:
    """Nothing that was cached for one file's tests reaches those of another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNEGYM_CACHE", str(next(_caches)))
        yield


@pytest.fixture(autouse=True)
def _cache_of_the_test(_caches: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that one test caches reaches another."""
    monkeypatch.setenv("PRUNEGYM_CACHE", str(next(_caches)))


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
