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
    assert leaves.cut_leaves(leaves.leaves_at(*leaves.blocks_of([old, new[:0], new]))) == [*expected[0], *expected[1]]
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


@pytest.mark.parametrize("name", ["U8", "BF16", "U64"])
def test_what_lies_apart_is_done_by_one_call(name: str) -> None:
    """Runs of many lengths, compared and moved where they lie, as one by one; and which were moved is noted."""
    rng, dtype = np.random.default_rng(7), DTYPES[name]
    old = [rng.integers(0, 256, size, dtype=np.uint8) for size in (8, 0, 240, 256, 1024, 70_000, BLOCK, 2 * BLOCK + 104)]
    new = [side.copy() for side in old]
    for side in new[3:]:
        units = side.view(dtype.unit)
        units[rng.random(len(units)) < 0.03] += 1
    found = changes.compared_apart(old, new, dtype)
    assert found.base_leaves == [leaf for side in old for leaf in leaves_of(side)]
    assert found.leaves == [leaf for side in new for leaf in leaves_of(side)]
    found_blocks = iter([tuple(part.tolist() for part in block) for block in found.changes.blocks])
    for before, after in zip(old, new, strict=True):
        for start in range(0, len(before), BLOCK):
            alone = changes.changes_of(before[start : start + BLOCK], after[start : start + BLOCK], dtype)
            assert next(found_blocks) == tuple(part.tolist() for part in alone)
    given = list[moves.Move]()
    for before, after in zip(old, new, strict=True):
        positions, zigzags = (part.copy() for part in changes.changes_of(before, after, dtype))
        given.append(moves.Move(before, positions, zigzags))
    expected, moved = [leaf for side in new for leaf in leaves_of(side)], np.zeros(len(given), np.uint8)
    assert moves.move_runs(given, dtype, False, True, moved) == expected
    assert moved.all() and all(np.array_equal(*sides) for sides in zip(old, new, strict=True))
    with pytest.raises(ValueError, match=r"blocks of .* bytes cannot be compared with such of"):
        changes.compared_apart(old[:2], old[1:3], dtype)


def test_nothing_is_moved_by_a_call_with_a_wrong_run() -> None:
    """What a kernel would write to by address is looked at before: all runs, before any is moved."""
    good, dtype = np.arange(100, dtype="<u2").view(np.uint8), DTYPES["BF16"]
    positions, zigzags = np.array([1, 5], np.int32), np.array([2, 2], "<u2")
    locked = good.copy()
    locked.flags.writeable = False
    wrong = [
        moves.Move(locked, positions, zigzags),
        moves.Move(good[::2], None, zigzags[:1].repeat(50)),
        moves.Move(good.copy(), positions.astype(np.int64), zigzags),
        moves.Move(good.copy(), positions, zigzags.astype(np.uint32)),
        moves.Move(good.copy(), np.array([1, 100], np.int32), zigzags),
    ]
    before = good.copy()
    for move in wrong:
        with pytest.raises(ValueError):
            moves.move_runs([moves.Move(good, positions, zigzags), move], dtype, False, True)
    assert np.array_equal(good, before)
