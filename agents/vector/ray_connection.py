"""Connections to a Ray cluster: one that is running, or a new one on this machine alone."""

from __future__ import annotations

import ipaddress
import logging
import os
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

from prunegym.agents.errors import AgentError
from prunegym.pruning.errors import one_line

OBJECT_STORE_BYTES = 2**30  # shared memory of a local cluster; beyond that it uses the disk
CONNECT_TIMEOUT_S = 10  # for an address to answer
TOKEN = "RAY_AUTH_TOKEN"  # environment variable that Ray reads when it starts a cluster or joins one
QUIET = {  # environment variables that Ray reads when it is first imported
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # else it reports deaths on standard output, which is for results
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the future default; without it Ray warns
}

logger = logging.getLogger(__name__)


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

    A local cluster listens on loopback addresses only. A warning is logged where a cluster that
    others can reach is joined.

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
                _warn_if_open(ray.init(address, **settings), address)
                return
            except ConnectionError:
                if address != "auto":
                    raise
        # in a folder of its own, as other runs would find this cluster in the default one and end with it
        local = {"num_cpus": n_envs, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
        with _private(ray):
            ray.init("local", _temp_dir=folder, **local, **settings)
    except (OSError, RuntimeError, ValueError) as error:
        raise AgentError(
            f"cannot use the Ray cluster {address} ({one_line(error)}); "
            "give HOST:PORT of one that this machine is part of, or local; "
            "one that asks for a token needs RAY_AUTH_MODE=token"
        ) from error


def _warn_if_open(context: Any, address: str) -> None:
    """Log a warning unless the cluster that was joined can be reached from this machine only."""
    joined = getattr(context, "address_info", {}).get("gcs_address", address)  # a ray:// client knows no more
    with suppress(ValueError):  # a name, which can be that of any machine
        if ipaddress.ip_address(joined.rpartition(":")[0].strip("[]")).is_loopback:
            return
    logger.warning(
        "the Ray cluster %s can be reached over the network: whoever reaches its ports can run code on it "
        "unless it asks for a token, see docs/distributed.md",
        joined,
    )


@contextmanager
def _private(ray: ModuleType) -> Iterator[None]:
    """Have a cluster that is started meanwhile listen on loopback addresses, with a token of its own.

    All processes of Ray listen on all interfaces unless this machine's address is the loopback address, which
    Ray replaces where it is given as an argument. Newer versions ask for a token too, as 2.60 does, and would
    put one into the user's home.
    """
    constants, former = ray._private.ray_constants, os.environ.get(TOKEN)
    may_span_machines, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False
    os.environ[TOKEN] = secrets.token_hex(32)
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = may_span_machines
        if former is None:
            del os.environ[TOKEN]
        else:
            os.environ[TOKEN] = former


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
