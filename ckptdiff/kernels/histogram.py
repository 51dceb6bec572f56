"""Kernels: how far, and which way, the changed elements of a block moved, counted in one pass over them."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ckptdiff.kernels.bins import HIGHEST, LOWEST
from ckptdiff.kernels.jit import ONE, ZERO, jit, zeros_above
from ckptdiff.kernels.ulps import UnitOrder, distance_between

Array = npt.NDArray[Any]

EQUAL, WITHIN_ATOL, WITHIN_RTOL, WITHIN_ATOL_ROUNDED, ONE_ULP, UP, DOWN = range(2, 9)
"""Where in the numbers of a block each count of changed elements stands: the order of the fields of ``analysis.sparsity.Counts``."""

BATCH = 4096
"""Changed elements that go through all loops before the next: what the loops hand each other stays in the L1 cache."""


class ElementLayout(NamedTuple):
    """Where the parts of an element stand in its bits."""

    exponent_shift: np.uint64
    """Bits below the exponent of a float."""
    exponent_mask: np.uint64
    """The exponent's bits, shifted down; 0 for other dtypes."""
    unused: np.uint64
    """How many of an element's highest bits in a byte are unused: 0, 2 or 4."""
    order: UnitOrder
    """How the bits order, once they are shifted up by the unused ones."""


class Tolerances(NamedTuple):
    """What counts as the same value; see ``analysis.sparsity.Counts``."""

    atol: float
    """The largest |target - base|."""
    rtol: float
    """The largest |target - base| / |base|."""
    atol_rounded: float
    """The largest |target - base| that is within ``atol`` once both are rounded to the dtype."""


class Moves(NamedTuple):
    """Changed elements of a block, or their distinct moves: five arrays of one length."""

    old: Array
    """Bits in the base."""
    new: Array
    """Bits in the target."""
    times: Array
    """How many elements moved so: uint32."""
    old_values: Array
    """Values in the base."""
    new_values: Array
    """Values in the target."""


class MoveBins(NamedTuple):
    """Bins that moves are counted in: int64, in two rows that take turns, since an adder that waits for itself takes longer."""

    ulps: Array
    """By the octave of the ulp distance."""
    sizes: Array
    """By the binary exponent of |target - base|, from :data:`~ckptdiff.kernels.bins.LOWEST` on."""
    exponents: Array
    """By the exponent field of the base."""


@jit
def count_exponents(bits, layout, counts):
    """Count the exponents of all elements, in four rows (int64) that take turns, since an adder that waits for itself takes longer."""
    shift, mask = layout.exponent_shift, layout.exponent_mask
    a, b, c, d = counts[0], counts[1], counts[2], counts[3]
    whole = len(bits) & -4
    for i in range(0, whole, 4):
        a[np.int64((np.uint64(bits[i]) >> shift) & mask)] += 1
        b[np.int64((np.uint64(bits[i + 1]) >> shift) & mask)] += 1
        c[np.int64((np.uint64(bits[i + 2]) >> shift) & mask)] += 1
        d[np.int64((np.uint64(bits[i + 3]) >> shift) & mask)] += 1
    for i in range(whole, len(bits)):
        a[np.int64((np.uint64(bits[i]) >> shift) & mask)] += 1


@jit
def gather(units, others, positions, old, new, times):
    """Fill the bits of changed elements in base and target, and 1 for how often each move occurs."""
    for x in range(len(positions)):
        old[x], new[x], times[x] = units[positions[x]], others[positions[x]], 1


@jit
def gather_distinct(units, others, positions, table, old, new, times):
    """As :func:`gather`, but each move of a 16-bit float by -4 to 3 ulps stands once, with how often it occurs.

    Args:
        units, others: bits of the block in base and target: uint16.
        positions: of the elements that changed: int32.
        table: memory to work in, uint32[8 * 2^16]: how often each unit moved by each distance.
        old, new, times: to fill.

    Returns:
        How many moves there are.
    """
    n = 0
    table[:] = np.uint32(0)
    for x in range(len(positions)):
        p = np.uint64(positions[x])
        a, b = units[p], others[p]
        up = np.uint64(_ordered_16(b) - _ordered_16(a) + 4)
        if up < np.uint64(8):
            table[(np.uint64(a) << np.uint64(3)) | up] += np.uint32(1)
        else:
            old[n], new[n], times[n] = a, b, 1
            n += 1
    pairs = table.view(np.uint64)
    for unit in range(1 << 16):
        if (pairs[4 * unit] | pairs[4 * unit + 1] | pairs[4 * unit + 2] | pairs[4 * unit + 3]) == ZERO:
            continue
        for up in range(8):
            if table[8 * unit + up] != 0:
                old[n], times[n] = unit, table[8 * unit + up]
                new[n] = _ordered_16(_ordered_16(unit) + up - 4)
                n += 1
    return n


@jit
def _ordered_16(unit):
    """The ordered integer of a 16-bit float (spec 7.2), less 2^15; it is its own inverse."""
    signed = np.int64(np.int16(unit))
    return signed ^ ((signed >> 63) & 0x7FFF)


@jit
def fill_distances(old, new, layout, distances):
    """Fill the ulp distances of moves: uint64."""
    for x in range(len(old)):
        distance, _ = distance_between(np.uint64(old[x]) << layout.unused, np.uint64(new[x]) << layout.unused, layout.order)
        distances[x] = distance >> layout.unused


@jit
def count_values(old, new, times, distances, tolerances, numbers, sizes):
    """Count moves by their values; LLVM turns this loop into vector operations.

    Args:
        old, new: values in base and target.
        times: how often each move occurs: uint32.
        distances: in ulps: uint64.
        tolerances: :class:`Tolerances`.
        numbers: int64; added to, at :data:`EQUAL` and behind.
        sizes: |target - base| of each move, to fill: float64.
    """
    atol, rtol, atol_rounded = tolerances
    equal, within_atol, within_rtol, rounded, one_ulp, up, down = 0, 0, 0, 0, 0, 0, 0
    for x in range(len(old)):
        a, b = np.float64(old[x]), np.float64(new[x])
        d, n = abs(b - a), np.int64(times[x])
        equal += n if a == b else 0
        within_atol += n if d <= atol else 0
        within_rtol += n if (d <= rtol * abs(a)) & (d < math.inf) else 0
        rounded += n if d <= atol_rounded else 0
        one_ulp += n if (distances[x] == ONE) & (a != b) else 0
        up += n if b > a else 0
        down += n if b < a else 0
        sizes[x] = d
    numbers[EQUAL] += equal
    numbers[WITHIN_ATOL] += within_atol
    numbers[WITHIN_RTOL] += within_rtol
    numbers[WITHIN_ATOL_ROUNDED] += rounded
    numbers[ONE_ULP] += one_ulp
    numbers[UP] += up
    numbers[DOWN] += down


@jit
def count_bins(old, times, distances, sizes, layout, bins):
    """Count moves in bins.

    Args:
        old: bits in the base.
        times: how often each move occurs: uint32.
        distances: in ulps: uint64.
        sizes: |target - base|: float64.
        layout: :class:`ElementLayout`.
        bins: :class:`MoveBins`.
    """
    bits, shift, mask = sizes.view(np.uint64), layout.exponent_shift, layout.exponent_mask
    for x in range(len(old)):
        turn, n = x & 1, np.int64(times[x])
        bins.ulps[turn, 63 - np.int64(zeros_above(distances[x] | ONE))] += n
        bins.exponents[turn, np.int64((np.uint64(old[x]) >> shift) & mask)] += n
        if sizes[x] > 0.0 and sizes[x] < math.inf:
            exponent = np.int64(bits[x] >> np.uint64(52)) - 1023
            bins.sizes[turn, min(max(exponent, LOWEST), HIGHEST) - LOWEST] += n


@jit
def count_moves(moves, layout, tolerances, distances, sizes, numbers, bins):
    """Count the moves of a block.

    Args:
        moves: :class:`Moves`.
        layout: :class:`ElementLayout`.
        tolerances: :class:`Tolerances`.
        distances, sizes: memory to work in, uint64 and float64, :data:`BATCH` of each.
        numbers: int64; added to, at :data:`EQUAL` and behind.
        bins: :class:`MoveBins`; added to.
    """
    for begin in range(0, len(moves.old), BATCH):
        end = begin + BATCH
        old, times = moves.old[begin:end], moves.times[begin:end]
        fill_distances(old, moves.new[begin:end], layout, distances)
        count_values(moves.old_values[begin:end], moves.new_values[begin:end], times, distances, tolerances, numbers, sizes)
        count_bins(old, times, distances, sizes, layout, bins)


@jit
def count_lines(positions, width, start, rows, columns):
    """Count changes by row and column.

    Args:
        positions: in the block: int32.
        width: elements in a row of the tensor.
        start: number in its row of the block's first element.
        rows: int64, one for each row that the block lies in; added to.
        columns: int64; added to. As many as the block reaches, at most ``width``: the first is the column of the block's first element,
            and behind the row's end they go on with the tensor's first column.
    """
    row, begin = 0, -start
    for x in range(len(positions)):
        p = np.int64(positions[x])
        while p - begin >= width:
            row += 1
            begin += width
        rows[row] += 1
        column = p - begin - start
        columns[column + width if column < 0 else column] += 1
