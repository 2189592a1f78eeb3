"""The connection to a Ray cluster: one that runs already, or one of this machine alone."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from prunegym.agents.errors import AgentError
from prunegym.pruning.errors import one_line

OBJECT_STORE_BYTES = 2**30  # bytes that a local cluster may hold in shared memory; beyond, it uses the disk
CONNECT_TIMEOUT_S = 10  # seconds within which an address must answer
QUIET = {  # environment variables, read where Ray is first imported
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # it reports deaths on standard output, where the results go
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the default to come; without it, a warning
}


def imported_ray() -> ModuleType:
    """Return the package `ray`, told to keep quiet.

    Raises:
        AgentError: it is not installed.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise AgentError(
            f'environments on a cluster need ray ({one_line(error)}): pip install "prunegym[cluster]"'
        ) from error
    return ray


@contextmanager
def connected(address: str, *, n_envs: int) -> Iterator[ModuleType]:
    """Connect to a cluster and yield the package `ray`; within another connection, use that one.

    Args:
        address: "auto" for the cluster that this machine is part of, or else a local one; "local" for a local
            one in any case; or HOST:PORT of a cluster that this machine is part of. A local cluster ends with
            the connection.
        n_envs: how many processes a local cluster has room for.

    Raises:
        AgentError: Ray is not installed, or no cluster is at the address.
    """
    ray = imported_ray()
    if ray.is_initialized():
        yield ray
        return
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        try:
            with _sigterm_kept():
                _connect(ray, address, n_envs, folder)
            yield ray
        finally:
            ray.shutdown()


def _connect(ray: ModuleType, address: str, n_envs: int, folder: str) -> None:
    settings: dict[str, Any] = {"logging_level": logging.CRITICAL, "log_to_driver": False}
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", address)
    try:
        if address != "local":
            _require_answer(address)
            try:
                ray.init(address, **settings)
                return
            except ConnectionError:
                if address != "auto":
                    raise
        # a folder of its own: through the usual one, other runs would find this cluster and end with it
        local = {"num_cpus": n_envs, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
        ray.init("local", _temp_dir=folder, **local, **settings)
    except (OSError, RuntimeError, ValueError) as error:
        raise AgentError(
            f"cannot use the Ray cluster {address} ({one_line(error)}); "
            "give HOST:PORT of one that this machine is part of, or local"
        ) from error


def _require_answer(address: str) -> None:
    """Raise OSError or ValueError unless something listens there; Ray itself would wait for minutes."""
    if address != "auto":
        host, _, port = address.rpartition("://")[2].rpartition(":")
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Give the caller's handler of SIGTERM back, which Ray replaces, and the signal too if one came."""
    if threading.current_thread() is not threading.main_thread():
        yield  # where Ray leaves handlers alone
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        signal.signal(signal.SIGTERM, handler)
        signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)
