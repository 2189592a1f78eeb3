from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# the same examples in every run: a check that fails must fail for the change that broke it
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks this small only lose time to a second thread
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)  # whatever ran before, in whichever process
