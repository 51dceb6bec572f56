"""Kernels: what the elements of a block did, in one pass over those that changed."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import math

import numpy as np

from ckptdiff.analysis.sparsity import HIGHEST, LOWEST
from ckptdiff.codecs.jit import ONE, jit

EQUAL, WITHIN_ATOL, WITHIN_RTOL, ROUNDED, ONE_ULP, UP, DOWN = range(7)
"""What is counted of changed elements, in the order of ``sparsity.Counts``."""


@jit
def count_exponents(bits, shift, mask, counts):
    """Count exponent fields; two rows that take turns, since an adder that waits for itself takes longer."""
    even, odd = counts[0], counts[1]
    for i in range(0, len(bits) - 1, 2):
        even[np.int64((np.uint64(bits[i]) >> shift) & mask)] += 1
        odd[np.int64((np.uint64(bits[i + 1]) >> shift) & mask)] += 1
    if len(bits) & 1:
        even[np.int64((np.uint64(bits[len(bits) - 1]) >> shift) & mask)] += 1


@jit
def count_changes(old, new, rounded, distances, atol, rtol, atol_rounded, fields, ulps, moves):
    """``old`` and ``new``: values of the changed elements; ``rounded``: |new - old| as the paper's code has it."""
    for x in range(len(old)):
        a, b = np.float64(old[x]), np.float64(new[x])
        d = abs(b - a)
        fields[EQUAL] += a == b
        fields[WITHIN_ATOL] += d <= atol
        fields[WITHIN_RTOL] += d <= rtol * abs(a)
        fields[ROUNDED] += rounded[x] <= atol_rounded
        fields[UP] += b > a
        fields[DOWN] += b < a
        distance, octave = distances[x], 0
        fields[ONE_ULP] += distance == ONE and a != b
        while distance > ONE:
            distance = distance >> ONE
            octave += 1
        ulps[octave] += 1
        if d > 0.0 and d < math.inf:
            exponent = math.frexp(d)[1] - 1
            moves[min(max(exponent, LOWEST), HIGHEST) - LOWEST] += 1


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
