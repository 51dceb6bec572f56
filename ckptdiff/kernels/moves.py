"""Kernels: units moved in place by their ulp distances, and the leaves of the result (spec sections 3.2 and 7.2)."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ckptdiff.format.digests import BLOCK
from ckptdiff.format.dtypes import Bytes, Changes, Dtype, Units
from ckptdiff.kernels.arrays import address_of, check_lengths, check_positions
from ckptdiff.kernels.jit import ZERO, array_at, jit
from ckptdiff.kernels.leaves import PIECE, blocks_at, cut_leaves, finish_leaf, hash_steps, start_leaf, stored_leaves
from ckptdiff.kernels.ulps import moved_unit, order_of

Array = npt.NDArray[Any]


@jit
def move_some(units, positions, zigzags, x, last, order, back):
    """Move units at ``positions`` below ``last``, of which that of number ``x`` is the first; returns the number of the next one."""
    while x < len(positions) and positions[x] < last:
        here = np.uint32(positions[x])  # which cannot be negative, so that LLVM leaves out the case
        units[here] = moved_unit(np.uint64(units[here]), np.uint64(zigzags[x]), order, back)
        x += 1
    return x


@jit
def move_all(units, zigzags, x, last, order, back):
    """Move all units from number ``x`` to ``last``."""
    for here in range(x, min(last, len(zigzags))):
        units[here] = moved_unit(np.uint64(units[here]), np.uint64(zigzags[here]), order, back)
    return last


@jit
def move_and_hash(runs, places, kind, order, back, sums, leaves, moved):
    """Move units of runs of blocks by their zigzags, piece by piece, so that what is hashed is in the cache.

    Args:
        runs: uint64[runs, 5]: the address of a run, its bytes, the addresses of positions and zigzags, and how many zigzags there are.
            Positions are int32 in the run; their address is 0 if every unit has a zigzag.
        places, kind: no items, of the types of positions and of units.
        order: :class:`~ckptdiff.kernels.ulps.UnitOrder`.
        back: whether to move by the zigzags or back.
        sums: memory to work in, uint64[8].
        leaves: uint64[blocks of all runs, 2], to fill with the leaves of the result; or none, and nothing is hashed.
        moved: uint8[runs], to fill: 1 for each run that is moved.
    """
    n, width = 0, kind.itemsize
    for k in range(len(runs)):
        data, nbytes, count = runs[k, 0], np.int64(runs[k, 1]), np.int64(runs[k, 4])
        units, zigzags, x = array_at(data, nbytes // width, kind), array_at(runs[k, 3], count, kind), 0
        positions, every = array_at(runs[k, 2], count, places), runs[k, 2] == ZERO
        moved[k] = 1
        for block in range(0, nbytes, BLOCK):
            size = min(BLOCK, nbytes - block)
            start_leaf(sums)
            for at in range(0, size, PIECE):
                stop = min(at + PIECE, size)
                last = (block + stop) // width
                if every:
                    x = move_all(units, zigzags, x, last, order, back)
                else:
                    x = move_some(units, positions, zigzags, x, last, order, back)
                if len(leaves):
                    hash_steps(sums, data, block, size, at, stop)
            if len(leaves):
                finish_leaf(sums, data, block, size, leaves[n])
                n += 1


class Move(NamedTuple):
    """What is to be moved in a run of whole blocks, of which the last may be short."""

    run: Bytes
    positions: Array | None
    """int32, rising; None if every unit has a zigzag."""
    zigzags: Units


def move_run(run: Bytes, positions: Array | None, zigzags: Units, dtype: Dtype, back: bool, hashed: bool) -> list[bytes]:
    """:func:`move_runs` of one run."""
    return move_runs([Move(run, positions, zigzags)], dtype, back, hashed)


def move_runs(moves: Sequence[Move], dtype: Dtype, back: bool, hashed: bool, moved: Array | None = None) -> list[bytes]:
    """Move units of runs of blocks in place, those at their positions or all of them: by one call of a kernel, which nothing interrupts.

    Args:
        moves: the runs.
        dtype: of all of them.
        back: whether to move back.
        hashed: whether to hash the result.
        moved: uint8, one for each run, to fill with ones with the move; so a caller who was interrupted knows what was done.

    Returns:
        The leaves of the results, one behind the other, if ``hashed``; else none.

    Raises:
        ValueError: positions are not those of units, or not as many as zigzags; or an array is not what it should be. Nothing is moved.
    """
    return cut_leaves(move_at(checked_runs(moves, dtype), dtype, back, hashed, moved))


def checked_runs(moves: Sequence[Move], dtype: Dtype) -> Array:
    """The rows of runs for :func:`move_at`; raises ValueError as :func:`move_runs`. The arrays must be kept as long as the rows."""
    return np.array([_checked(move, dtype) for move in moves], np.uint64).reshape(-1, 5)


def runs_at(addresses: Array, sizes: Array, changes: Changes, begins: Array, counts: Array) -> Array:
    """The rows of runs for :func:`move_at`, of which nothing is checked.

    Args:
        addresses, sizes: where each run lies, and its bytes.
        changes: of all runs; the arrays must be kept as long as the rows.
        begins, counts: where in these the changes of each run begin, and how many it has: uint64.
    """
    positions, zigzags = (np.uint64(part.ctypes.data) + begins * np.uint64(part.itemsize) for part in changes)
    return np.stack([addresses, sizes.astype(np.uint64), positions, zigzags, counts], axis=1)


def move_at(runs: Array, dtype: Dtype, back: bool, hashed: bool, moved: Array | None = None) -> bytes:
    """:func:`move_runs`, given rows as :func:`move_and_hash` takes them; returns the leaves one behind the other."""
    moved = np.empty(len(runs), np.uint8) if moved is None else moved
    addresses, sizes = blocks_at(runs[:, 0], runs[:, 1]) if hashed else (runs[:0, 0], runs[:0, 1])
    leaves, nothing = np.empty((len(sizes), 2), np.uint64), (np.empty(0, np.int32), np.empty(0, dtype.unit))
    move_and_hash(runs, *nothing, order_of(dtype), back, np.empty(8, np.uint64), leaves, moved)
    return stored_leaves(leaves, addresses, sizes)


def _checked(move: Move, dtype: Dtype) -> tuple[int, ...]:
    """A move's row for the kernel, which reads and writes by address."""
    run, positions, zigzags = move
    units = range(len(run) // dtype.carrier)
    if run.dtype != np.uint8 or zigzags.dtype != dtype.unit or not (run.flags.carray and zigzags.flags.c_contiguous):
        raise ValueError(f"expected bytes without gaps that can be written to, and zigzags of {dtype.unit}")
    if positions is None:
        check_lengths(units, zigzags)
        return address_of(run), len(run), 0, address_of(zigzags), len(zigzags)
    if positions.dtype != np.int32 or not positions.flags.c_contiguous:
        raise ValueError("expected positions of int32")
    check_positions(units, positions, zigzags)
    return address_of(run), len(run), address_of(positions), address_of(zigzags), len(zigzags)
