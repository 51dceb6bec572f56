"""Leaves (spec 3.2) of tensors in memory, on the host and on other devices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice

import numpy as np

from ckptdiff import device, kernels
from ckptdiff.format.digests import BLOCK, block_count
from ckptdiff.format.dtypes import Bytes
from ckptdiff.lazy import torch

BYTES_PER_HASH_JOB = 16 * BLOCK
"""Bytes of tensors that one job hashes."""


def leaves_in_memory(parts: Sequence[Bytes | torch.Tensor], threads: int) -> list[list[bytes]]:
    """Leaves of tensors in memory."""
    with hash_in_background(parts, threads) as leaves:
        return leaves()


@contextmanager
def hash_in_background(parts: Sequence[Bytes | torch.Tensor], threads: int) -> Iterator[Callable[[], list[list[bytes]]]]:
    """Hash tensors in memory on other threads; gives a function that waits for the leaves of all of them.

    What one job would hash is hashed by that function itself: to start a thread takes as long.
    """
    on_devices = [part for part in parts if not isinstance(part, np.ndarray)]
    batches = list(_batches(part for part in parts if isinstance(part, np.ndarray)))
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ckptdiff") if len(batches) > 1 else None
    try:
        futures = [pool.submit(kernels.leaves.leaves_of_all, batch) for batch in batches] if pool is not None else []

        def leaves() -> list[list[bytes]]:
            on_this_thread = [] if futures else [kernels.leaves.leaves_of_all(batch) for batch in batches]
            device_leaves = iter(_leaves_on_devices(on_devices))
            host_leaves = chain.from_iterable(on_this_thread or (future.result() for future in futures))
            return [
                list(islice(host_leaves, block_count(len(part)))) if isinstance(part, np.ndarray) else next(device_leaves) for part in parts
            ]

        yield leaves
    finally:
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)


def _batches(parts: Iterable[Bytes]) -> Iterator[list[Bytes]]:
    """Tensors cut, or put together, to as many bytes as one job hashes."""
    batch, size = list[Bytes](), 0
    for part in parts:
        for start in range(0, len(part), BYTES_PER_HASH_JOB):
            batch.append(part[start : start + BYTES_PER_HASH_JOB])
            size += len(batch[-1])
            if size >= BYTES_PER_HASH_JOB:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _leaves_on_devices(parts: Sequence[torch.Tensor]) -> list[list[bytes]]:
    """Leaves of tensors that are not on the host."""
    leaves: dict[int, list[bytes]] = {}
    for where in {part.device for part in parts}:
        numbers = [k for k, part in enumerate(parts) if part.device == where]
        leaves |= dict(zip(numbers, device.leaves.leaf_digests([parts[k] for k in numbers]), strict=True))
    return [leaves[k] for k in range(len(parts))]
