"""Kernels: units moved in place by their ulp distances, and the leaves of the result (spec sections 3.2 and 7.2)."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff.format.digests import BLOCK, block_bounds, block_count
from ckptdiff.format.dtypes import Bytes, Dtype, Units
from ckptdiff.kernels.arrays import check_lengths, check_positions
from ckptdiff.kernels.changes import Run
from ckptdiff.kernels.jit import jit
from ckptdiff.kernels.leaves import PIECE, as_leaves, finish_leaf, hash_steps, start_leaf
from ckptdiff.kernels.ulps import moved_unit, order_of

Array = npt.NDArray[Any]


@jit
def move_and_hash(run, positions, zigzags, order, back, sums, leaves):
    """Move units of a run of blocks by their zigzags, piece by piece, so that what is hashed is in the cache.

    Args:
        run: :class:`~ckptdiff.kernels.changes.Run`.
        positions: int32 in the run; none if every unit has a zigzag.
        zigzags: one for each position, or for each unit.
        order: :class:`~ckptdiff.kernels.ulps.UnitOrder`.
        back: whether to move by the zigzags or back.
        sums: memory to work in, uint64[8].
        leaves: uint64[blocks, 2], to fill with the leaves of the result; or none, and nothing is hashed.
    """
    data, units = run
    x, width, every = 0, len(data) // len(units), len(positions) == 0
    for block in range(0, len(data), BLOCK):
        size = min(BLOCK, len(data) - block)
        start_leaf(sums)
        for at in range(0, size, PIECE):
            stop = min(at + PIECE, size)
            last = (block + stop) // width
            while x < len(zigzags) and (x if every else positions[x]) < last:
                here = x if every else np.int64(positions[x])
                units[here] = moved_unit(np.uint64(units[here]), np.uint64(zigzags[x]), order, back)
                x += 1
            if len(leaves):
                hash_steps(sums, data, block, size, at, stop)
        if len(leaves):
            finish_leaf(sums, data, block, size, leaves[block // BLOCK])


def move_run(run: Bytes, positions: Array | None, zigzags: Units, dtype: Dtype, back: bool, hashed: bool) -> list[bytes]:
    """Move units of a run of blocks in place, those at ``positions`` or all of them.

    Returns:
        The leaves of the result, if ``hashed``; else none.

    Raises:
        ValueError: positions are not those of units, or not as many as zigzags.
    """
    blocks, where = Run.of(run, dtype), np.empty(0, np.int32) if positions is None else positions
    if positions is None:
        check_lengths(blocks.units, zigzags)
    else:
        check_positions(blocks.units, positions, zigzags)
    leaves = np.empty((block_count(len(run)) if hashed else 0, 2), np.uint64)
    move_and_hash(blocks, where, zigzags, order_of(dtype), back, np.empty(8, np.uint64), leaves)
    return as_leaves(leaves, run, block_bounds(len(run))) if hashed else []
