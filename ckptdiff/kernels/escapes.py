"""Kernels: escaped values (spec section 7.1), and gaps between positions (7.4)."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff.kernels.jit import ONE, ZERO, jit

Array = npt.NDArray[Any]


@jit
def count_escapes(values, escape):
    """How many values are at least ``escape`` (uint64)."""
    n = 0
    for x in range(len(values)):
        n += np.uint64(values[x]) >= escape
    return n


@jit
def best_width(values, width):
    """How many low planes, of values of ``width`` bytes, give the fewest bytes before compression."""
    best, size = width, width * len(values)
    for w in range(width - 1, 0, -1):
        needed = w * len(values) + width * count_escapes(values, (ONE << np.uint64(8 * w)) - ONE)
        if needed <= size:
            best, size = w, needed
    return best


@jit
def split_escaped(values, width, low, planes):
    """Fill the planes of values, one behind the other.

    Args:
        values: unsigned integers.
        width: bytes of a value.
        low: how many low planes there are, at most ``width``.
        planes: uint8, ``width`` for each value, to fill: the low planes, then the high planes of values at or above the escape.

    Returns:
        How many values are at or above the escape.
    """
    escape = (ONE << np.uint64(8 * low)) - ONE if low < width else ZERO - ONE
    n, high, at = len(values), 0, low * len(values)
    for w in range(low):
        shift = np.uint64(8 * w)
        for x in range(n):
            planes[w * n + x] = np.uint8(min(np.uint64(values[x]), escape) >> shift)
    if low < width:
        high = count_escapes(values, escape)
    for w in range(width if high else 0):
        shift, k = np.uint64(8 * w), at + w * high
        for x in range(n):
            if np.uint64(values[x]) >= escape:
                planes[k] = np.uint8((np.uint64(values[x]) - escape) >> shift)
                k += 1
    return high


@jit
def split_changes(positions, zigzags, gap_width, width, gaps, values, gap_planes, value_planes):
    """Fill the planes of the gaps before positions, and of zigzags less one.

    Args:
        positions, zigzags: the changes of a block: int32, and as units are.
        gap_width, width: bytes of a gap, and of a zigzag.
        gaps, values: memory to work in, uint32 and as zigzags are, one for each change.
        gap_planes, value_planes: as :func:`split_escaped` fills them.

    Returns:
        How many low planes gaps have, and how many escapes; the same of values.
    """
    before = np.int64(-1)
    for x in range(len(positions)):
        gaps[x] = np.uint32(np.int64(positions[x]) - before - 1)
        before = np.int64(positions[x])
    for x in range(len(zigzags)):
        values[x] = np.uint64(zigzags[x]) - ONE
    g, w = best_width(gaps, gap_width), best_width(values, width)
    return g, split_escaped(gaps, gap_width, g, gap_planes), w, split_escaped(values, width, w, value_planes)


@jit
def fill_positions(gaps, size, positions):
    """Fill the positions that have these gaps before them, up to the first that is not below ``size``; returns the last one."""
    at = -1
    for x in range(len(gaps)):
        at += np.int64(gaps[x]) + 1
        if at >= size:
            return at
        positions[x] = np.int32(at)
    return at


@jit
def join_planes(planes, values):
    """Fill values from planes (uint8[planes, values]), of which the first holds the lowest bytes."""
    values[:] = 0
    for w in range(planes.shape[0]):
        shift = np.uint64(8 * w)
        for x in range(len(values)):
            values[x] |= np.uint64(planes[w, x]) << shift


@jit
def add_escaped(values, escape, high, most):
    """Add to each value that is the escape what its high planes hold.

    Args:
        values: as the low planes have them.
        escape: the largest value that these can hold: uint64.
        high: the high planes: uint8[planes, values that are the escape].
        most: the largest value allowed: uint64.

    Returns:
        False if a value is above ``most``.
    """
    k = 0
    for x in range(len(values)):
        if np.uint64(values[x]) == escape:
            value = ZERO
            for w in range(high.shape[0]):
                value |= np.uint64(high[w, k]) << np.uint64(8 * w)
            if value > most - escape:
                return False
            values[x] = value + escape
            k += 1
    return True


@jit
def count_equal(values, wanted):
    """How many values are ``wanted`` (uint64)."""
    n = 0
    for x in range(len(values)):
        n += np.uint64(values[x]) == wanted
    return n
