"""XXH3-128 of blocks by the kernels: the digests of the xxhash library."""

from __future__ import annotations

import numpy as np
import pytest

from ckptdiff.format.digests import BLOCK, leaves_of
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.kernels import changes, leaves, moves


@pytest.mark.parametrize(
    "size", [0, 1, 240, 241, 256, 1023, 1024, 1025, 1088, 32768, 32769, BLOCK - 1, BLOCK, BLOCK + 240, BLOCK + 241, 2 * BLOCK + 100]
)
def test_leaves_by_kernels_are_the_librarys(size: int) -> None:
    """XXH3-128 alone, beside a compare, and beside moves; of memory that is not aligned."""
    rng = np.random.default_rng(size)
    old, new = (rng.integers(0, 256, size + 1, dtype=np.uint8)[1:] for _ in range(2))
    expected = leaves_of(old), leaves_of(new)
    assert leaves.leaves_of_all([old, new[:0], new]) == [*expected[0], *expected[1]]
    for name in ("U8", "BF16", "F32", "U64"):
        dtype = DTYPES[name]
        a, b = (side[: size // dtype.carrier * dtype.carrier].copy() for side in (old, new))
        found = changes.compared(a, b, dtype)
        assert (found.base_leaves, found.leaves) == (leaves_of(a), leaves_of(b))
        for k, (positions, zigzags) in enumerate(found.changes.blocks):
            block = a[k * BLOCK : (k + 1) * BLOCK]
            assert positions.tolist() == np.flatnonzero(block.view(dtype.unit) != b[k * BLOCK : (k + 1) * BLOCK].view(dtype.unit)).tolist()
            assert moves.move_run(block, positions, zigzags, dtype, False, True) == [found.leaves[k]]
        assert np.array_equal(a, b)
