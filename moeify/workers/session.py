"""A session of Ray: on this machine, for as long as it is needed, or on a cluster that runs already."""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

from moeify.errors import InputError, MissingExtraError, UsageError, one_line

#: Seconds that a cluster may take to answer.
_PATIENCE = 10

#: Ray reports its use and, as long as nobody says otherwise, listens on the machine's address in the network. Its dashboard
#: process asks the machine's cloud for its name even when both are off: with a proxy that nobody listens on this fails at once.
_CALM = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_TQDM": "0"}
_LOCAL = {
    "RAY_worker_niceness": "0",  # the default, 15, is for machines that do something else besides
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's own switch for the loopback address alone, whatever the system
    **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"),
    **dict.fromkeys(("no_proxy", "NO_PROXY"), "127.0.0.1,localhost"),
    "RAY_AUTH_MODE": "token",  # processes of a session know each other by a word, which Ray would else keep in the home folder
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


def check_ray() -> None:
    """Raises MissingExtraError where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError("ray", "ray", "a conversion by several workers (--workers, --cluster)")


def check_reachable(cluster: str) -> None:
    """Raises UsageError for an address without a port, InputError where nobody answers at it: Ray itself would try for minutes.
    Of "auto" only Ray knows what it means."""
    if cluster == "auto":
        return
    parts = urlsplit(cluster if "://" in cluster else f"//{cluster}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:  # a port that is no number
        host, port = None, None
    if host is None or port is None or parts.scheme not in ("", "ray"):
        raise UsageError(f"cluster is {cluster!r}: give auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host, port), _PATIENCE).close()
    except OSError as error:
        raise InputError(f"the cluster {cluster} cannot be reached: {one_line(str(error))}; is it running?") from error


@contextmanager
def ray_session(workers: int | None, cluster: str | None) -> Iterator[None]:
    """Ray is ready inside. workers: processes on this machine, which end with the block, and leave no file. cluster: an address
    as ray.init takes it ("auto", "host:6379", "ray://host:10001"). A session that the program has opened itself is used as it
    is, and left open.

    Raises InputError where the cluster cannot be reached, or Ray does not start.
    """
    with ExitStack() as stack:
        modules = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # what this process finds, workers on it find too
        with _environment({**_CALM, **({} if cluster else _LOCAL | modules)}), _signals_kept():
            import ray

            if not ray.is_initialized():
                stack.enter_context(_opened(_local(workers, stack) if cluster is None else {"address": cluster}))
        yield


def _local(workers: int | None, stack: ExitStack) -> dict[str, Any]:
    """The options of a session on this machine; its files go when the stack ends."""
    folder = tempfile.mkdtemp(prefix="moeify-ray-")
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    return {"address": "local", "num_cpus": workers, "num_gpus": 0, "include_dashboard": False, "_temp_dir": folder}


@contextmanager
def _opened(options: Mapping[str, Any]) -> Iterator[None]:
    import ray

    try:
        try:
            ray.init(**options, log_to_driver=False, logging_level=logging.CRITICAL)
        except Exception as error:  # errors of many kinds, and of no class of Ray's
            local = options["address"] == "local"
            where = "Ray does not start on this machine" if local else f"the cluster {options['address']} cannot be reached"
            raise InputError(f"{where}: {type(error).__name__}: {one_line(str(error))}") from error
        yield
    finally:
        ray.shutdown()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """With those values, for Ray and for the processes that it starts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts a handler of its own on SIGTERM, which would end the process before anything is cleared away."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
