"""Connections to a Ray cluster: one that is running, or a new one on this machine alone."""

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

OBJECT_STORE_BYTES = 2**30  # shared memory of a local cluster; beyond that it uses the disk
CONNECT_TIMEOUT_S = 10  # for an address to answer
QUIET = {  # environment variables that Ray reads when it is first imported
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # else it reports deaths on standard output, which is for results
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the future default; without it Ray warns
}


def imported_ray() -> ModuleType:
    """Import the package `ray`, with its reports turned off.

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
    """Connect to a cluster and yield the package `ray`; an existing connection is used again.

    Args:
        address: "auto" for the cluster that this machine is part of, or a local one if there is none; "local"
            for a local one in any case; or HOST:PORT of a cluster that this machine is part of. A local
            cluster ends with the connection.
        n_envs: number of processes that a local cluster has room for.

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
            if address != "auto":
                # OSError or ValueError unless something listens there; Ray itself would wait for minutes
                host, _, port = address.rpartition("://")[2].rpartition(":")
                socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
            try:
                ray.init(address, **settings)
                return
            except ConnectionError:
                if address != "auto":
                    raise
        # in a folder of its own, as other runs would find this cluster in the default one and end with it
        local = {"num_cpus": n_envs, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
        ray.init("local", _temp_dir=folder, **local, **settings)
    except (OSError, RuntimeError, ValueError) as error:
        raise AgentError(
            f"cannot use the Ray cluster {address} ({one_line(error)}); "
            "give HOST:PORT of one that this machine is part of, or local"
        ) from error


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Restore the handler of SIGTERM, which Ray replaces, and raise the signal again if it arrived."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Ray replaces handlers only in the main thread
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
