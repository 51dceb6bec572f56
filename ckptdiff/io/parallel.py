"""Jobs on a thread pool, with results in order and a bounded number under way; and the SHA-256 of a file, computed beside them."""

from __future__ import annotations

import hashlib
import os
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

import numpy as np

from ckptdiff.io.job import Job
from ckptdiff.io.scratch import scratch
from ckptdiff.io.source import ByteSource

T = TypeVar("T")
READ_BYTES = 1 << 20
"""How many bytes of a file are read at once where they are only hashed or copied."""


class Progress(Protocol):
    """A function that a verb tells how far it is, from the thread that called the verb."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Take a report.

        Args:
            what: what is being done.
            done, total: bytes done so far, and in all.
        """


def no_progress(what: str, done: int, total: int) -> None:
    """A :class:`Progress` that ignores reports: the default."""


def default_threads() -> int:
    """How many threads to use unless told: one for each core that this process may use, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


class JobPool:
    """Threads that do jobs. Once it is closed, no job starts, and those that began have ended.

    Ctrl-C may come while a thread is started, of which the executor then knows nothing, and does not wait for: so jobs are counted here.
    """

    def __init__(self, threads: int) -> None:
        self._executor, self._changed = ThreadPoolExecutor(threads, thread_name_prefix="ckptdiff"), threading.Condition()
        self._running, self._is_closed = 0, False

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Have a job done."""
        return self._executor.submit(self._run, job)

    def _run(self, job: Callable[[], T]) -> T:
        with self._changed:
            if self._is_closed:
                raise CancelledError
            self._running += 1
        try:
            return job()
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Cancel what has not begun, and wait for what has."""
        with self._changed:
            self._is_closed = True
        self._executor.shutdown(wait=True, cancel_futures=True)
        with self._changed:
            while self._running:
                self._changed.wait()


def run_ordered(jobs: Iterable[Callable[[], T]], threads: int) -> Generator[T, None, None]:
    """Run jobs on ``threads`` threads and yield their results in the order of the jobs.

    At most ``2 * threads`` jobs are under way or have results that are not taken yet, which bounds memory. After an error or an
    interrupt no further job starts, and those under way have ended when the generator ends.
    """
    if threads <= 1:
        yield from (job() for job in jobs)
        return
    pending: deque[Future[T]] = deque()
    with closing(JobPool(threads)) as pool:
        for job in jobs:
            pending.append(pool.submit(job))
            if len(pending) >= 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


J = TypeVar("J", bound=Job)
JOB_BYTES = 1 << 23
"""Bytes of jobs that a thread is given at once: to hand over a job takes Python's lock longer than to do it takes Python."""
LIGHTEST, LIGHTER_FROM = 4, 1 << 27
"""Up to so much less a job counts of which little is kept in memory, once for each so many bytes of all jobs. What is between two batches
is slow, as all memory that Python works with has left the processor's caches."""
WORKER_MEMORY = 640 << 20
"""Bytes that a process which does jobs may take, unless its work says more (docs/ray.md has what was measured)."""


class Work(ABC, Generic[J, T]):
    """What is done with each job of a plan. It holds the open files that jobs name parts of.

    It can be pickled: a file goes by its path and by what it must be (:class:`~ckptdiff.io.source.LocalFile`), and another process opens
    the same file for itself. A job gives the same wherever it is done.
    """

    @abstractmethod
    def __call__(self, job: J) -> T:
        """Do a job, on any thread."""

    def many(self, jobs: Sequence[J]) -> list[T]:
        """Do several jobs; those of which many take little time together may be done at once."""
        return [self(job) for job in jobs]

    @abstractmethod
    def about(self, job: J) -> str:
        """What messages call a job: the file and tensor."""

    def weight(self, job: J) -> int:
        """Bytes that a job counts for where a thread is given several at once: fewer than it has, if what it gives takes little memory."""
        return job.nbytes

    @property
    def elsewhere(self) -> Work[J, T]:
        """What another process does instead, where this work leaves something for this process; else the same."""
        return self

    def memory(self, job: J) -> int:
        """Bytes that a process which does such a job may take in all."""
        return WORKER_MEMORY

    def rest(self) -> None:
        """Close what was written to: another process has done some jobs, and says so next."""


class Executor(Protocol):
    """Runs the jobs of a plan, wherever that is."""

    def __call__(self, work: Work[J, T], jobs: Iterable[J]) -> Generator[T, None, None]:
        """Do jobs, in any order, and yield what they give in the order of the jobs."""


class Workers(Protocol):
    """Those who do the jobs of a verb: threads of this process, or other processes."""

    def executor(self, nbytes: int, least: int = JOB_BYTES) -> Executor:
        """An executor for jobs of so many bytes in all.

        ``least``: bytes of jobs that a thread is given at once, if there is enough work; other processes are given as many as pays there.
        """

    def alone(self) -> tuple[Executor, int]:
        """An executor for jobs of which each keeps all cores of its process busy, and how many threads such a job may use."""


def run_plan(execute: Executor, work: Work[J, T], jobs: Iterable[J]) -> Generator[tuple[J, T], None, None]:
    """Run the jobs of a plan; yields each with what it gave, in the order of the plan."""
    started = deque[J]()

    def noted() -> Generator[J, None, None]:
        for job in jobs:
            started.append(job)
            yield job

    with closing(execute(work, noted())) as results:
        for result in results:
            yield started.popleft(), result


def batches(jobs: Iterable[J], nbytes: int, most: int, weight: Callable[[J], int] | None = None) -> Generator[list[J], None, None]:
    """Jobs in groups of so many bytes or more, but never of more jobs than ``most``; ``weight``: the bytes of one, if not all count."""
    batch, size = list[J](), 0
    for job in jobs:
        batch.append(job)
        size += job.nbytes if weight is None else weight(job)
        if size >= nbytes or len(batch) == most:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


MOST_JOBS = 256
"""Jobs that a thread is given at once, however small they are."""


@dataclass(frozen=True, slots=True)
class Threads:
    """An :class:`Executor` on threads of this process, by :func:`run_ordered`."""

    count: int
    """How many threads."""
    batch: int = 0
    """Bytes of jobs, or more, that a thread is given at once."""

    def __call__(self, work: Work[J, T] | Callable[[J], T], jobs: Iterable[J]) -> Generator[T, None, None]:
        weight = work.weight if isinstance(work, Work) else None
        tasks = (partial(_run_batch, work, batch) for batch in batches(jobs, self.batch, MOST_JOBS, weight))
        with closing(run_ordered(tasks, self.count)) as results:
            for batch in results:
                yield from batch


def lightness(nbytes: int) -> int:
    """By how much less a job counts of which little is kept in memory, given the bytes of all jobs: of few, each thread should get some."""
    return max(1, min(LIGHTEST, nbytes // LIGHTER_FROM))


def threads_for(count: int, nbytes: int, least: int = JOB_BYTES) -> Threads:
    """So many threads for jobs of so many bytes: each is given ``least`` bytes at once, or, of little work, a part that leaves all some."""
    return Threads(count, min(least, nbytes // (4 * count)))


def _run_batch(work: Work[J, T] | Callable[[J], T], batch: Sequence[J]) -> list[T]:
    return work.many(batch) if isinstance(work, Work) else [work(job) for job in batch]


@dataclass(frozen=True, slots=True)
class ThreadWorkers:
    """:class:`Workers` on threads of this process."""

    count: int
    """How many threads."""

    def executor(self, nbytes: int, least: int = JOB_BYTES) -> Threads:
        """As of :class:`Workers`."""
        return threads_for(self.count, nbytes, least)

    def alone(self) -> tuple[Threads, int]:
        """As of :class:`Workers`: one job after the other."""
        return Threads(1), self.count


HASH_BYTES = 1 << 21
"""How many bytes of a file are read at once where it is hashed: a block, for which a thread that encodes has the memory."""
HASHED_AT_ONCE = 1 << 20
"""Bytes from which on they are read again and hashed: for those of a small tensor alone that is not worth while."""


class FileHasher:
    """The SHA-256 of a file, advanced by any thread that has just read the file, so that its bytes come from the page cache."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._sha = hashlib.sha256()
        self._position = 0
        self._goal = 0
        self._lock = threading.Lock()

    def advance(self, goal: int) -> None:
        """Hash up to byte ``goal``, once that is many bytes further; if another thread is hashing, leave that to it."""
        self._goal = max(self._goal, min(goal, self._source.size))
        ended = self._goal == self._source.size  # of a file that comes from a store, what is left would have to be fetched again
        if (ended or self._goal - self._position >= HASHED_AT_ONCE) and self._lock.acquire(blocking=False):
            try:
                self._work()
            finally:
                self._lock.release()

    @property
    def left(self) -> int:
        """Bytes that are not hashed yet."""
        return self._source.size - self._position

    def _work(self) -> None:
        """Hash up to the goal; the caller holds the lock."""
        buffer = scratch("target", HASH_BYTES, np.uint8)
        while (count := self._goal - self._position) > 0:  # one look at the goal, which other threads move
            part = buffer[:count]
            self._source.readinto(self._position, part)
            self._sha.update(part)
            self._position += len(part)

    def hexdigest(self) -> str:
        """The SHA-256 of the whole file."""
        with self._lock:
            self._goal = self._source.size
            self._work()
        return self._sha.hexdigest()


def sha256_file(source: ByteSource) -> str:
    """The SHA-256 of a whole file, without holding it in memory."""
    return FileHasher(source).hexdigest()
