"""Limits of this process, for tests of what happens at them."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def limited(which: int, most: int) -> Iterator[None]:
    """Lower a limit of this process, such as `resource.RLIMIT_NOFILE`, within this block."""
    soft, hard = resource.getrlimit(which)
    resource.setrlimit(which, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(which, (soft, hard))
