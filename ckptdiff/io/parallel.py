"""Jobs on a thread pool, results in order, a bounded number under way; and SHA-256 of a file beside them."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np

from ckptdiff.io.scratch import scratch
from ckptdiff.io.source import ByteSource

T = TypeVar("T")
CHUNK = 1 << 20


class Progress(Protocol):
    """How far a verb is: called with a label and bytes done and in all, from the calling thread."""

    def __call__(self, what: str, done: int, total: int) -> None: ...


def no_progress(what: str, done: int, total: int) -> None:
    """The default: nobody watches."""


def default_threads() -> int:
    """As many threads as this process may use cores, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


def run_ordered(jobs: Iterable[Callable[[], T]], threads: int) -> Generator[T, None, None]:
    """Run jobs on ``threads`` threads and yield their results in the order of the jobs.

    At most ``2 * threads`` jobs are under way or waiting to be taken, which bounds memory. After an error or an
    interrupt no further job starts, and those under way have ended when this generator has.
    """
    if threads <= 1:
        for job in jobs:
            yield job()
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ckptdiff")
    pending: deque[Future[T]] = deque()
    try:
        for job in jobs:
            pending.append(pool.submit(job))
            if len(pending) >= 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class FileHasher:
    """SHA-256 of a file, advanced by whichever thread comes by, so that it is read once while it is in the page cache."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._sha = hashlib.sha256()
        self._position = 0
        self._goal = 0
        self._lock = threading.Lock()

    def advance(self, goal: int) -> None:
        """Hash up to byte ``goal``, unless another thread is at it: then leave the goal to it."""
        self._goal = max(self._goal, min(goal, self._source.size))
        if self._lock.acquire(blocking=False):
            try:
                self._work()
            finally:
                self._lock.release()

    def _work(self) -> None:
        buffer = scratch("hash", CHUNK, np.uint8)
        while (count := self._goal - self._position) > 0:  # read once: other threads move the goal
            part = buffer[:count]
            self._source.readinto(self._position, part)
            self._sha.update(part)
            self._position += len(part)

    def hexdigest(self) -> str:
        """SHA-256 of the whole file."""
        with self._lock:
            self._goal = self._source.size
            self._work()
        return self._sha.hexdigest()


def sha256_file(source: ByteSource) -> str:
    """SHA-256 of a whole file, read in chunks."""
    return FileHasher(source).hexdigest()
