"""A Ray cluster as a :class:`~ckptdiff.io.elsewhere.Pool`: one that is there, or one that is started here for a command.

Ray repeats what fails (tasks of processes and machines that are lost, and jobs that raised), keeps results where they were made until they
are asked for, and counts the cores and the memory that each task says it needs.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from ckptdiff.errors import ResourceError, UnsupportedError, cut
from ckptdiff.io.elsewhere import BATCH, JobError, LostError, Pool, do_batch
from ckptdiff.io.parallel import default_threads
from ckptdiff.io.signals import held
from ckptdiff.lazy import ray, require
from ckptdiff.obtaining import how_to_get

LOCAL = "local"
"""The address that starts Ray here."""
RETRIES = 4
"""How often a task is repeated."""
ATTEMPTS = 3
"""How often it is tried to start Ray here: it waits half a minute for itself, which is too little for a machine that is very busy."""
CONNECT_SECONDS = 20.0
"""How long a cluster has to answer."""
END_SECONDS = 10.0
"""How long tasks that are told to stop are waited for, before their processes are killed, and again after that."""
STORE_BYTES = 1 << 28
"""Object store of a Ray that is started here, beside what the batches under way need."""


@contextmanager
def open_pool(address: str, tasks: int | None) -> Iterator[Pool]:
    """Connect to Ray; where this process is connected already, that connection is used, and kept.

    Args:
        address: ``host:port`` of a cluster whose machines include this one; ``auto``, one that runs on this machine; ``local``, a new one
            of this machine alone, which ends with the block.
        tasks: how many tasks to have at a time; None: one for each CPU of the cluster.

    Raises:
        UnsupportedError: Ray is not installed. ResourceError: there is no such cluster, it has no CPUs, or it cannot be started.
    """
    folder = tempfile.mkdtemp(prefix="ckptdiff-ray-") if address == LOCAL and not _is_connected() else None
    started = False
    try:
        with _environment(folder is not None):
            _load()
            if not ray.is_initialized():
                started = True
                with held() if folder is not None else nullcontext():  # what is interrupted while it starts would leave processes
                    _init(address, folder, tasks or default_threads())
        yield RayPool(tasks)
    finally:
        if started:
            ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)  # a process of Ray's may still write its log


def _is_connected() -> bool:
    return "ray" in sys.modules and bool(ray.is_initialized())


@contextmanager
def _environment(loopback: bool) -> Iterator[None]:
    """What Ray reads when it is imported and started: no statistics; and where it runs for one command, servers for this machine alone."""
    wanted = {"RAY_USAGE_STATS_ENABLED": "0"} | ({"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"} if loopback else {})
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _load() -> None:
    """Import Ray; raises UnsupportedError if it is not there."""
    try:
        require("ray")
    except ModuleNotFoundError:
        raise UnsupportedError(f"--ray needs Ray; {how_to_get('ray')}") from None


def _init(address: str, folder: str | None, tasks: int) -> None:
    """Connect to a cluster, or start one that keeps its files in a folder."""
    options: dict[str, Any] = {"address": address, "logging_level": logging.CRITICAL, "log_to_driver": False}
    if folder is not None:
        options |= {"num_cpus": tasks, "include_dashboard": False, "_temp_dir": folder, "_node_ip_address": "127.0.0.1"}
        options |= {"object_store_memory": STORE_BYTES + 2 * tasks * BATCH}
    else:
        _check_answers(address)
    before = signal.getsignal(signal.SIGTERM)
    try:
        for left in reversed(range(ATTEMPTS)):
            try:
                ray.init(**options)
                break
            except Exception as error:
                if not left or folder is None or "timed out" not in str(error):
                    raise ResourceError(f"Ray at {address}: cannot be {'started' if folder else 'reached'}: {_line(error)}") from None
                ray.shutdown()
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGTERM, before)  # Ray's own would end this process without tidying up


def _check_answers(address: str) -> None:
    """Raise ResourceError if nothing answers at ``host:port``: Ray would try for a quarter of an hour."""
    host, colon, port = address.rpartition(":")
    try:
        if colon:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ResourceError(f"Ray at {address}: cannot be reached: {_line(error)}: is that what ray start printed?") from None


def _line(error: BaseException) -> str:
    """What an error of Ray's says, in one line."""
    return cut(" ".join(str(error).split()) or type(error).__name__)


class RayPool:
    """A :class:`~ckptdiff.io.elsewhere.Pool` of the Ray cluster that this process is connected to."""

    def __init__(self, tasks: int | None) -> None:
        cpus = int(ray.cluster_resources().get("CPU", 0))
        if not cpus:
            raise ResourceError("the Ray cluster has no CPUs for tasks: add a machine (ray start --address=...), or give it --num-cpus")
        self.count = tasks or cpus
        self._memory = max(int(node["Resources"].get("memory", 0)) for node in ray.nodes() if node["Alive"])
        self._task = ray.remote(num_cpus=1, max_retries=RETRIES, retry_exceptions=[JobError])(do_batch)

    def share(self, work: bytes) -> Any:
        """As of :class:`~ckptdiff.io.elsewhere.Pool`: put into the object store, which workers read in place."""
        return ray.put(np.frombuffer(work, np.uint8))

    def submit(self, key: str, shared: Any, batch: bytes, memory: int) -> Any:
        """As of :class:`~ckptdiff.io.elsewhere.Pool`; a task that no machine has the memory for would wait for ever, and asks for less."""
        return self._task.options(memory=min(memory, self._memory)).remote(key, shared, batch)

    def result(self, submitted: Any) -> bytes:
        """As of :class:`~ckptdiff.io.elsewhere.Pool`."""
        try:
            done: bytes = ray.get(submitted)
            return done
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, JobError):
                raise error.cause from None
            raise LostError(_line(error.cause)) from None
        except ray.exceptions.RayError as error:
            raise LostError(_line(error)) from None

    def cancel(self, submitted: Iterable[Any]) -> None:
        """As of :class:`~ckptdiff.io.elsewhere.Pool`."""
        left = list(submitted)
        for force in (False, True):
            for task in left:
                ray.cancel(task, force=force)
            if left:
                left = ray.wait(left, num_returns=len(left), timeout=END_SECONDS, fetch_local=False)[1]
