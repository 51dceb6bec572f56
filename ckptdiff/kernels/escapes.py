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
def split_blocks(positions, zigzags, ends, gap_width, width, gaps, values, gap_planes, value_planes, widths):
    """:func:`split_changes` of several blocks, one behind the other.

    Args:
        positions, zigzags, gap_width, width, gap_planes, value_planes: as there.
        ends: int64, one more than blocks: where the changes of each block end, from the second on; the first is 0.
        gaps, values: as there, as many as the block with most changes has.
        widths: int64[blocks, 4], to fill with what :func:`split_changes` returns.
    """
    for k in range(len(widths)):
        i, j = ends[k], ends[k + 1]
        low, high = gap_planes[gap_width * i : gap_width * j], value_planes[width * i : width * j]
        found = split_changes(positions[i:j], zigzags[i:j], gap_width, width, gaps[: j - i], values[: j - i], low, high)
        widths[k, 0], widths[k, 1], widths[k, 2], widths[k, 3] = found


@jit
def join_planes(planes, at, count, low, escaped, width, values, first):
    """Fill ``count`` values from the planes that :func:`split_escaped` fills.

    Args:
        planes: uint8; the planes begin at ``at``, of which the first holds the lowest bytes.
        count, low, width: how many values, how many low planes, and bytes of a value.
        escaped: how many values are the escape, and have high planes.
        values: unsigned integers, to fill from ``first`` on.

    Returns:
        Where the planes end; -1 if a value takes more than ``width`` bytes, or if not so many are the escape.
    """
    for x in range(count):
        values[first + x] = planes[at + x]
    for w in range(1, low):
        shift = np.uint64(8 * w)
        for x in range(count):
            values[first + x] |= np.uint64(planes[at + w * count + x]) << shift
    at += low * count
    if low == width:
        return at
    escape, k = (ONE << np.uint64(8 * low)) - ONE, 0
    most = (ZERO - ONE >> np.uint64(64 - 8 * width)) - escape
    for x in range(count if escaped else 0):
        if np.uint64(values[first + x]) == escape:
            if k == escaped:
                return -1
            value = ZERO
            for w in range(width):
                value |= np.uint64(planes[at + w * escaped + k]) << np.uint64(8 * w)
            if value > most:
                return -1
            values[first + x] = value + escape
            k += 1
    return at + width * escaped if k == escaped else -1


@jit
def sum_gaps(planes, at, block, width, positions, first):
    """Fill the positions of a block's changes where gaps have one low plane, as nearly all have.

    Args:
        planes: uint8; those of the gaps begin at ``at``.
        block: as :func:`join_changes` takes them.
        width: bytes of a gap.
        positions: int32, to fill from ``first`` on.

    Returns:
        Where the planes end; -1 if there are more low planes, or anything is wrong.
    """
    count, escaped, units, offset = block[0], block[2], block[5], block[6]
    if block[1] != 1:
        return -1
    high, k, unit = at + count, 0, np.int64(-1)
    low, found = planes[at:high], positions[first : first + count]  # whose indexes cannot be negative, so that LLVM leaves out the case
    for x in range(count):
        gap = np.int64(low[x])
        if gap == 255:
            if k == escaped:
                return -1
            for w in range(width):
                gap += np.int64(planes[high + w * escaped + k]) << np.int64(8 * w)
            k += 1
        unit += gap + 1
        found[x] = unit + offset
    return high + width * escaped if k == escaped and unit < units else -1


@jit
def join_zigzags(planes, at, block, width, zigzags, first):
    """Fill a block's zigzags of more than one byte where one less than them has one low plane; else as :func:`sum_gaps`."""
    count, escaped = block[0], block[4]
    if block[3] != 1 or width == 1:
        return -1
    high, k, most = at + count, 0, ZERO - ONE >> np.uint64(64 - 8 * width)
    low, found = planes[at:high], zigzags[first : first + count]
    for x in range(count):
        found[x] = np.uint64(low[x]) + ONE
    for x in range(count if escaped else 0):
        if low[x] == 255:
            if k == escaped:
                return -1
            more = ZERO
            for w in range(width):
                more |= np.uint64(planes[high + w * escaped + k]) << np.uint64(8 * w)
            if more >= most - np.uint64(255):
                return -1
            found[x] = more + np.uint64(256)
            k += 1
    return high + width * escaped if k == escaped else -1


GAP_TOO_LARGE, VALUE_TOO_LARGE, BEYOND_BLOCK, DISTANCE_TOO_LARGE = range(1, 5)
"""What :func:`join_changes` finds wrong with a block."""


@jit
def join_changes(planes, blocks, gap_width, width, gaps, positions, zigzags):
    """Fill the changes of several blocks from their planes, one behind the other: those of gaps before those of zigzags less one.

    Args:
        planes: uint8.
        blocks: int64[blocks, 7]: changes; low planes and escapes of gaps, and of values; units; what is added to positions.
        gap_width, width: bytes of a gap, and of a zigzag.
        gaps: memory to work in: uint32, as many as the block with most changes has.
        positions, zigzags: int32, and as units are, to fill.

    Returns:
        The number of the first block that breaks a rule, what is wrong, and which unit it would change; or -1 and zeros.
    """
    at, n, most = 0, 0, ZERO - ONE >> np.uint64(64 - 8 * width)
    for k in range(len(blocks)):
        count, units, offset, start = blocks[k, 0], blocks[k, 5], blocks[k, 6], at
        at = sum_gaps(planes, start, blocks[k], gap_width, positions, n)
        if at < 0:
            at = join_planes(planes, start, count, blocks[k, 1], blocks[k, 2], gap_width, gaps, 0)
            if at < 0:
                return k, GAP_TOO_LARGE, 0
            unit = -1
            for x in range(count):
                unit += np.int64(gaps[x]) + 1
                if unit >= units:
                    return k, BEYOND_BLOCK, unit
                positions[n + x] = unit + offset
        start = at
        at = join_zigzags(planes, start, blocks[k], width, zigzags, n)
        if at >= 0:
            n += count
            continue
        at = join_planes(planes, start, count, blocks[k, 3], blocks[k, 4], width, zigzags, n)
        if at < 0:
            return k, VALUE_TOO_LARGE, 0
        largest = ZERO
        for x in range(n, n + count):
            largest = max(largest, np.uint64(zigzags[x]))
            zigzags[x] += ONE
        if largest == most:
            return k, DISTANCE_TOO_LARGE, 0
        n += count
    return -1, 0, 0
