"""Kernels: what the elements of a block did, in one pass over those that changed."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import math

import numpy as np

from ckptdiff.analysis.sparsity import HIGHEST, LOWEST
from ckptdiff.codecs.changes import step
from ckptdiff.codecs.jit import ONE, ZERO, jit, zeros_above

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
def gather(units, others, positions, old, new):
    for x in range(len(positions)):
        old[x], new[x] = units[positions[x]], others[positions[x]]


@jit
def fill_distances(old, new, unused, top, is_float, distances):
    for x in range(len(old)):
        distance, _ = step(np.uint64(old[x]) << unused, np.uint64(new[x]) << unused, top, is_float)
        distances[x] = distance >> unused


@jit
def count_values(old, new, distances, tolerances, numbers, moves):
    """Count what needs no table, and fill ``moves`` with the sizes of the moves: LLVM turns this loop into vector operations."""
    atol, rtol, atol_rounded = tolerances[0], tolerances[1], tolerances[2]
    equal, within_atol, within_rtol, rounded, one_ulp, up, down = 0, 0, 0, 0, 0, 0, 0
    for x in range(len(old)):
        a, b = np.float64(old[x]), np.float64(new[x])
        d = abs(b - a)
        equal += a == b
        within_atol += d <= atol
        within_rtol += d <= rtol * abs(a)
        rounded += d <= atol_rounded
        one_ulp += (distances[x] == ONE) & (a != b)
        up += b > a
        down += b < a
        moves[x] = d
    numbers[EQUAL] += equal
    numbers[WITHIN_ATOL] += within_atol
    numbers[WITHIN_RTOL] += within_rtol
    numbers[ROUNDED] += rounded
    numbers[ONE_ULP] += one_ulp
    numbers[UP] += up
    numbers[DOWN] += down


@jit
def count_bins(old, distances, moves, shift, mask, ulps, sizes, exponents):
    """Two rows of bins take turns, as in :func:`count_exponents`."""
    bits = moves.view(np.uint64)
    for x in range(len(old)):
        turn = x & 1
        ulps[turn, 63 - np.int64(zeros_above(distances[x] | ONE))] += 1
        exponents[turn, np.int64((np.uint64(old[x]) >> shift) & mask)] += 1
        if moves[x] > 0.0 and moves[x] < math.inf:
            exponent = np.int64(bits[x] >> np.uint64(52)) - 1023
            sizes[turn, min(max(exponent, LOWEST), HIGHEST) - LOWEST] += 1


@jit
def count_changes(old, new, old_values, new_values, layout, tolerances, distances, moves, numbers, ulps, sizes, exponents):
    """Count the changed elements, given as bits and as values."""
    shift, mask, unused, top, is_float = layout[0], layout[1], layout[2], layout[3], layout[4] != ZERO
    for begin in range(0, len(old), SLICE):
        end = begin + SLICE
        bits = old[begin:end]
        fill_distances(bits, new[begin:end], unused, top, is_float, distances)
        count_values(old_values[begin:end], new_values[begin:end], distances, tolerances, numbers, moves)
        count_bins(bits, distances, moves, shift, mask, ulps, sizes, exponents)


@jit
def count_lines(positions, width, start, rows, columns):
    """Count changes by row and column; the block's first element is number ``start`` of its first row."""
    row, begin = 0, -start
    for x in range(len(positions)):
        p = np.int64(positions[x])
        while p - begin >= width:
            row += 1
            begin += width
        rows[row] += 1
        columns[p - begin] += 1
