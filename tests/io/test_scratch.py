"""Scratch arrays: one name gives a thread the same memory again, and gives other threads other memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ckptdiff.io.scratch import scratch


def test_one_name_is_one_array_of_a_thread() -> None:
    first = scratch("test", 1000, np.uint32)
    assert (first.dtype, len(first)) == (np.uint32, 1000)
    assert np.shares_memory(first, scratch("test", 500, np.uint64)) and not np.shares_memory(first, scratch("other", 10, np.uint8))
    larger = scratch("test", 1 << 20, np.uint64)
    larger[:] = 7
    assert len(larger) == 1 << 20 and len(scratch("test", 0, np.uint8)) == 0


def test_threads_do_not_share() -> None:
    mine = scratch("test", 100, np.uint8)
    with ThreadPoolExecutor(1) as pool:
        assert not np.shares_memory(mine, pool.submit(scratch, "test", 100, np.uint8).result())
