"""Under NUMBA_BOUNDSCHECK=1 Numba checks every index that a kernel forms, as plain Python does; negative ones pass.

    NUMBA_BOUNDSCHECK=1 pytest tests/kernels/test_boundscheck.py tests/format/test_vectors.py tests/codecs/test_context.py ...

These tests fail if the kernels are not checked after all, for example because a cache does not tell checked kernels from others. What
intrinsics read (``unequal``, ``below``, the stripes of XXH3) is not checked this way; tests/fuzz/plain_kernels.py, where they are Python,
checks it. ``prefetch`` may point behind an array, as it reads nothing.
"""

from __future__ import annotations

import numba
import numpy as np
import pytest

from ckptdiff.kernels.classes import fill_classes
from ckptdiff.kernels.mask_ops import zero_unmasked
from ckptdiff.kernels.ulps import SizedChanges, UnitOrder, fill_sized

pytestmark = pytest.mark.skipif(not numba.config.BOUNDSCHECK, reason="NUMBA_BOUNDSCHECK=1 is not set")


def test_a_write_behind_an_array_is_refused() -> None:
    with pytest.raises(IndexError, match=r"^index is out of bounds$"):
        fill_classes(np.zeros(4, "<u2"), np.uint64(7), np.uint64(255), np.zeros(8, np.uint8)[:3])


def test_a_position_behind_the_units_is_refused() -> None:
    with pytest.raises(IndexError, match=r"^index is out of bounds$"):
        changes = SizedChanges(np.array([4], np.int32), np.ones(1, np.uint64), np.ones(1, np.uint8))
        fill_sized(np.zeros(8, "<u2")[:4], np.ones(1, "<u2"), UnitOrder(np.uint64(15), True), changes)


def test_a_read_behind_a_mask_is_refused() -> None:
    with pytest.raises(IndexError, match=r"^index is out of bounds$"):
        zero_unmasked(np.ones(16, np.int32), np.ones(8, np.uint8)[:1])
