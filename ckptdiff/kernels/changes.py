"""Kernels: which units of a block changed, by how many ulps, and the leaves of what is compared (spec sections 3.2 and 7.2)."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ckptdiff.format.digests import block_bounds, xxh128
from ckptdiff.format.dtypes import Bytes, Changes, Dtype, ManyChanges
from ckptdiff.io.scratch import scratch
from ckptdiff.kernels.arrays import check_lengths, readable
from ckptdiff.kernels.jit import ONE, ZERO, array_at, jit, prefetch, unequal, zeros_below
from ckptdiff.kernels.leaves import PIECE, blocks_of, cut_leaves, finish_leaf, hash_steps, start_leaf, stored_leaves
from ckptdiff.kernels.ulps import order_of, zigzag_between

Array = npt.NDArray[Any]


@jit
def fill_differing(units, others, positions):
    """Fill the positions of the units that differ from ``others``.

    Args:
        units: of any kind.
        others: as many of the same kind, or 64, which are repeated.
        positions: int32, to fill.

    Returns:
        How many differ.
    """
    n, whole, every = 0, len(units) - len(units) % 64, len(others) == len(units)
    for i in range(0, whole, 64):
        bits = unequal(units, i, others, i if every else 0)
        while bits != ZERO:
            positions[n] = np.int32(i + np.int64(zeros_below(bits)))
            bits &= bits - ONE
            n += 1
    for i in range(whole, len(units)):
        if units[i] != others[i if every else 0]:
            positions[n] = np.int32(i)
            n += 1
    return n


@jit
def fill_changes(old, new, first, order, n, positions, zigzags):
    """Append the changes of some units to those that are known.

    Args:
        old, new: units of base and target.
        first: number in the block of the first of them.
        order: :class:`~ckptdiff.kernels.ulps.UnitOrder`.
        n: how many changes are known.
        positions, zigzags: int32, and as units are, with room for a change of each.

    Returns:
        How many changes are known afterwards.
    """
    whole, ahead = len(old) - len(old) % 64, PIECE // old.itemsize
    for i in range(0, whole, 64):
        prefetch(old, i + ahead)
        prefetch(new, i + ahead)
        bits = unequal(old, i, new, i)
        while bits != ZERO:
            at = i + np.int64(zeros_below(bits))
            positions[n] = np.int32(first + at)
            zigzags[n] = zigzag_between(np.uint64(old[at]), np.uint64(new[at]), order)
            bits &= bits - ONE
            n += 1
    for at in range(whole, len(old)):
        if old[at] != new[at]:
            positions[n] = np.int32(first + at)
            zigzags[n] = zigzag_between(np.uint64(old[at]), np.uint64(new[at]), order)
            n += 1
    return n


@jit
def fill_compared(bases, targets, sizes, order, positions, zigzags, ends, sums, leaves):
    """Find the changes of each block, and its leaves: piece by piece, so that what is hashed is in the cache.

    Args:
        bases, targets: uint64[blocks]: the address of each block in the base, and in the target.
        sizes: int64[blocks]: the bytes of each.
        order: :class:`~ckptdiff.kernels.ulps.UnitOrder`.
        positions, zigzags: room for a change of each unit; the changes of all blocks follow each other, by their number in the block.
        ends: int64, one more than blocks: where the changes of each block end, from the second on; the first is 0.
        sums: memory to work in, uint64[2, 8].
        leaves: uint64[2, blocks, 2], to fill: of the base, then of the target.
    """
    n, width = 0, zigzags.itemsize
    for k in range(len(sizes)):
        size = sizes[k]
        old, new = array_at(bases[k], size // width, zigzags), array_at(targets[k], size // width, zigzags)
        start_leaf(sums[0])
        start_leaf(sums[1])
        for at in range(0, size, PIECE):
            stop = min(at + PIECE, size)
            first, last = at // width, stop // width
            n = fill_changes(old[first:last], new[first:last], first, order, n, positions, zigzags)
            hash_steps(sums[0], bases[k], 0, size, at, stop)
            hash_steps(sums[1], targets[k], 0, size, at, stop)
        finish_leaf(sums[0], bases[k], 0, size, leaves[0, k])
        finish_leaf(sums[1], targets[k], 0, size, leaves[1, k])
        ends[k + 1] = n


def differing(units: Array, others: Array | int) -> Array:
    """Positions of the units that differ from ``others``, or from one number. Scratch.

    Raises:
        ValueError: there are not as many others.
    """
    if isinstance(others, int):
        others = np.full(64, others, units.dtype)
    else:
        check_lengths(units, others)
    positions = scratch("positions", len(units) + 1, np.int32)
    return positions[: fill_differing(units, others, positions)]


def changes_of(base: Bytes, target: Bytes, dtype: Dtype) -> Changes:
    """The changes of a block. Scratch.

    Raises:
        ValueError: base and target do not have the same length.
    """
    old, new = readable(base).view(dtype.unit), readable(target).view(dtype.unit)
    check_lengths(old, new)
    positions, zigzags = scratch("positions", len(old), np.int32), scratch("zigzags", len(old), dtype.unit)
    count = fill_changes(old, new, 0, order_of(dtype), 0, positions, zigzags)
    return positions[:count], zigzags[:count]


SMALL_RUN = 1 << 14
"""Bytes up to which a run is first looked at as a whole: of many small tensors most stay as they are, and a kernel's call takes longer."""


class Compared(NamedTuple):
    """Blocks of a base and a target, compared."""

    changes: ManyChanges
    """Scratch."""
    base_leaves: list[bytes]
    leaves: list[bytes]
    """The leaves of base and target."""


def compared(base: Bytes, target: Bytes, dtype: Dtype) -> Compared:
    """Compare a run of whole blocks of a tensor, of which the last may be short, by reading memory once.

    Raises:
        ValueError: base and target do not have the same length.
    """
    if 0 < len(target) <= SMALL_RUN and len(base) == len(target) and not (base != target).any():
        leaf = xxh128(target)
        return Compared(ManyChanges(np.empty(0, np.int32), np.empty(0, dtype.unit), [0, 0]), [leaf], [leaf])
    return compared_blocks(base, target, block_bounds(len(target)), dtype)


def compared_blocks(base: Bytes, target: Bytes, bounds: Sequence[int], dtype: Dtype) -> Compared:
    """Compare blocks of several tensors of one dtype that lie one behind the other.

    Args:
        base, target: the bytes.
        bounds: one more than blocks: where each ends, from the second on; the first is 0.
        dtype: of both.

    Raises:
        ValueError: base and target do not have the same length.
    """
    check_lengths(base.view(dtype.unit), target.view(dtype.unit))
    where = np.array(bounds, np.uint64)
    old, new = where[:-1] + np.uint64(base.ctypes.data), where[:-1] + np.uint64(target.ctypes.data)
    return _compared(old, new, np.diff(bounds), dtype)


def compared_apart(bases: Sequence[Bytes], targets: Sequence[Bytes], dtype: Dtype) -> Compared:
    """Compare runs of whole blocks of several tensors of one dtype, each of which lies where it does, by reading memory once.

    Raises:
        ValueError: a base and its target do not have the same length, or the bytes of one do not lie one behind the other.
    """
    (old, sizes), (new, others) = blocks_of(bases), blocks_of(targets)
    if not np.array_equal(sizes, others):
        raise ValueError(f"blocks of {sizes.tolist()} bytes cannot be compared with such of {others.tolist()}")
    return _compared(old, new, sizes, dtype)


def _compared(old: Array, new: Array, sizes: Array, dtype: Dtype) -> Compared:
    """Compare blocks, given their addresses and sizes: uint64 and int64."""
    count, blocks = int(sizes.sum()) // dtype.carrier, len(sizes)
    positions, zigzags = scratch("positions", count, np.int32), scratch("zigzags", count, dtype.unit)
    ends, leaves = np.zeros(blocks + 1, np.int64), np.empty((2, blocks, 2), np.uint64)
    fill_compared(old, new, sizes, order_of(dtype), positions, zigzags, ends, np.empty((2, 8), np.uint64), leaves)
    changes = ManyChanges(positions[: ends[-1]], zigzags[: ends[-1]], ends.tolist())
    before, after = (cut_leaves(stored_leaves(found, where, sizes)) for found, where in zip(leaves, (old, new), strict=True))
    return Compared(changes, before, after)
