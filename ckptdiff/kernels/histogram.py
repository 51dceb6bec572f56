"""Kernels: what the elements of a block did, in one pass over those that changed."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import math

import numpy as np

from ckptdiff.kernels.bins import HIGHEST, LOWEST
from ckptdiff.kernels.changes import step
from ckptdiff.kernels.jit import ONE, ZERO, jit, zeros_above

EQUAL, WITHIN_ATOL, WITHIN_RTOL, ROUNDED, ONE_ULP, UP, DOWN = range(2, 9)
"""What is counted of changed elements: places in ``sparsity.Counts``."""

SLICE = 4096
"""Changed elements that are taken through all loops before the next: what lies between the loops stays in the L1 cache."""


@jit
def count_exponents(bits, layout, counts):
    """Count exponent fields; four rows that take turns, since an adder that waits for itself takes longer."""
    shift, mask = layout[0], layout[1]
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
    for x in range(len(positions)):
        old[x], new[x], times[x] = units[positions[x]], others[positions[x]], 1


@jit
def gather_distinct(units, others, positions, table, old, new, times):
    """As :func:`gather`, but moves of 16-bit floats by -4 to 3 ulps once each, and how often.

    ``table`` is filled with how often each unit moved by each distance. Returns how many moves there are.
    """
    n = 0
    table[:] = np.uint32(0)
    for x in range(len(positions)):
        p = np.uint64(positions[x])
        a, b = units[p], others[p]
        up = np.uint64(_order(b) - _order(a) + 4)
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
                new[n] = _order(_order(unit) + up - 4)
                n += 1
    return n


@jit
def _order(unit):
    """The ordered integer of a 16-bit float (spec 7.2), less 2^15; it is its own inverse."""
    signed = np.int64(np.int16(unit))
    return signed ^ ((signed >> 63) & 0x7FFF)


@jit
def fill_distances(old, new, unused, top, is_float, distances):
    for x in range(len(old)):
        distance, _ = step(np.uint64(old[x]) << unused, np.uint64(new[x]) << unused, top, is_float)
        distances[x] = distance >> unused


@jit
def count_values(old, new, times, distances, tolerances, numbers, moves):
    """Count what needs no table, and fill ``moves`` with the sizes of the moves: LLVM turns this loop into vector operations."""
    atol, rtol, atol_rounded = tolerances[0], tolerances[1], tolerances[2]
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
        moves[x] = d
    numbers[EQUAL] += equal
    numbers[WITHIN_ATOL] += within_atol
    numbers[WITHIN_RTOL] += within_rtol
    numbers[ROUNDED] += rounded
    numbers[ONE_ULP] += one_ulp
    numbers[UP] += up
    numbers[DOWN] += down


@jit
def count_bins(old, times, distances, moves, shift, mask, ulps, sizes, exponents):
    """Two rows of bins take turns, as in :func:`count_exponents`."""
    bits = moves.view(np.uint64)
    for x in range(len(old)):
        turn, n = x & 1, np.int64(times[x])
        ulps[turn, 63 - np.int64(zeros_above(distances[x] | ONE))] += n
        exponents[turn, np.int64((np.uint64(old[x]) >> shift) & mask)] += n
        if moves[x] > 0.0 and moves[x] < math.inf:
            exponent = np.int64(bits[x] >> np.uint64(52)) - 1023
            sizes[turn, min(max(exponent, LOWEST), HIGHEST) - LOWEST] += n


@jit
def count_changes(old, new, times, old_values, new_values, layout, tolerances, distances, moves, numbers, ulps, sizes, exponents):
    """Count changed elements, given as bits and as values, each as often as ``times`` says."""
    shift, mask, unused, top, is_float = layout[0], layout[1], layout[2], layout[3], layout[4] != ZERO
    for begin in range(0, len(old), SLICE):
        end = begin + SLICE
        bits, often = old[begin:end], times[begin:end]
        fill_distances(bits, new[begin:end], unused, top, is_float, distances)
        count_values(old_values[begin:end], new_values[begin:end], often, distances, tolerances, numbers, moves)
        count_bins(bits, often, distances, moves, shift, mask, ulps, sizes, exponents)


@jit
def count_lines(positions, width, start, rows, columns):
    """Count changes by row and column; the block's first element is number ``start`` of its first row, and in the first of ``columns``.

    These are as many as the block reaches, at most ``width``: they begin again behind the row's end.
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
