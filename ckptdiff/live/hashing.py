"""Leaves (spec 3.2) of tensors in memory, on the host and on other devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff import device, kernels
from ckptdiff.format.digests import BLOCK, block_count
from ckptdiff.format.dtypes import Bytes
from ckptdiff.io.parallel import JobPool
from ckptdiff.lazy import torch

BYTES_PER_HASH_JOB = 16 * BLOCK
"""Bytes of blocks that one job hashes."""
LEAST_IN_BACKGROUND = 2 * BLOCK
"""Bytes of blocks from which on other threads hash."""
Array = npt.NDArray[Any]


def leaves_in_memory(parts: Sequence[Bytes | torch.Tensor], threads: int) -> list[list[bytes]]:
    """Leaves of tensors in memory."""
    with hash_in_background(parts, threads) as leaves:
        return leaves()


@contextmanager
def hash_in_background(parts: Sequence[Bytes | torch.Tensor], threads: int) -> Iterator[Callable[[], list[list[bytes]]]]:
    """Hash tensors in memory on other threads; gives a function that waits for the leaves of all of them."""
    on_devices = [part for part in parts if not isinstance(part, np.ndarray)]
    blocks = kernels.leaves.blocks_of([part for part in parts if isinstance(part, np.ndarray)])
    with hash_blocks_in_background(*blocks, threads) as host_leaves:

        def leaves() -> list[list[bytes]]:
            on_host = iter(kernels.leaves.cut_leaves(host_leaves()))
            device_leaves = iter(_leaves_on_devices(on_devices))
            return [
                list(islice(on_host, block_count(len(part)))) if isinstance(part, np.ndarray) else next(device_leaves) for part in parts
            ]

        yield leaves


def leaves_of_blocks(addresses: Array, sizes: Array, threads: int) -> bytes:
    """Leaves of blocks in the host's memory, one behind the other; the arguments are as of :func:`hash_blocks_in_background`."""
    with hash_blocks_in_background(addresses, sizes, threads) as leaves:
        return leaves()


@contextmanager
def hash_blocks_in_background(addresses: Array, sizes: Array, threads: int) -> Iterator[Callable[[], bytes]]:
    """Hash blocks in the host's memory on other threads; gives a function that waits for all leaves, which lie one behind the other.

    Of so few bytes that to start a thread takes as long, that function hashes them itself.

    Args:
        addresses, sizes: of the blocks: uint64 and int64.
        threads: how many.
    """
    ends = np.cumsum(sizes)
    cuts = [0, *(np.flatnonzero(np.diff(ends // BYTES_PER_HASH_JOB)) + 1).tolist(), len(sizes)]
    jobs = [(addresses[i:j], sizes[i:j]) for i, j in pairwise(cuts) if i < j]
    if not len(ends) or ends[-1] < LEAST_IN_BACKGROUND:
        yield lambda: b"".join([kernels.leaves.leaves_at(*job) for job in jobs])
        return
    with closing(JobPool(threads)) as pool:
        futures = [pool.submit(partial(kernels.leaves.leaves_at, *job)) for job in jobs]
        yield lambda: b"".join([future.result() for future in futures])


def _leaves_on_devices(parts: Sequence[torch.Tensor]) -> list[list[bytes]]:
    """Leaves of tensors that are not on the host."""
    leaves: dict[int, list[bytes]] = {}
    for where in {part.device for part in parts}:
        numbers = [k for k, part in enumerate(parts) if part.device == where]
        leaves |= dict(zip(numbers, device.leaves.leaf_digests([parts[k] for k in numbers]), strict=True))
    return [leaves[k] for k in range(len(parts))]
