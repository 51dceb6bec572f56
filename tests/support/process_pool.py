"""A pool of spawned processes, in place of a Ray cluster: what is sent to them, done there and sent back goes the same way."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import pytest

from ckptdiff.io import ray_pool
from ckptdiff.io.elsewhere import LostError, do_batch


class ProcessPool:
    """A :class:`~ckptdiff.io.elsewhere.Pool`, which repeats nothing."""

    def __init__(self, executor: ProcessPoolExecutor, count: int) -> None:
        self.count, self.submitted, self._executor = count, 0, executor

    def share(self, work: bytes) -> bytes:
        return work

    def submit(self, key: str, shared: bytes, batch: bytes, memory: int) -> Future[bytes]:
        self.submitted += 1
        return self._executor.submit(do_batch, key, shared, batch)

    def result(self, submitted: Future[bytes]) -> bytes:
        try:
            return submitted.result()
        except BrokenProcessPool as error:
            raise LostError(str(error)) from None

    def cancel(self, submitted: Iterable[Future[bytes]]) -> None:
        left = [task for task in submitted if not task.cancel()]
        wait(left)


@contextmanager
def process_pool(count: int) -> Iterator[ProcessPool]:
    """So many processes, and every ``ray=`` of the block leads to them."""
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as executor, pytest.MonkeyPatch.context() as patched:
        pool = ProcessPool(executor, count)

        @contextmanager
        def open_pool(address: str, tasks: int | None) -> Iterator[ProcessPool]:
            yield pool

        patched.setattr(ray_pool, "open_pool", open_pool)
        yield pool
