"""Kernels of escaped values (spec section 7.1), and of gaps between positions (7.4)."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff.codecs.jit import ONE, ZERO, jit
from ckptdiff.codecs.planes import Reader, write_plane
from ckptdiff.dtypes import Units
from ckptdiff.scratch import scratch

Array = npt.NDArray[Any]


@jit
def count_escapes(values, counts):
    """How many values need more than w planes, in item w - 1; 0 in the last, since no value does."""
    for w in range(1, len(counts)):
        limit, n = (ONE << np.uint64(8 * w)) - ONE, 0
        for x in range(len(values)):
            n += np.uint64(values[x]) >= limit
        counts[w - 1] = n


@jit
def fill_gaps_and_values(positions, zigzags, gaps, values, gap_escapes, value_escapes):
    """Also counts how many gaps and values need more than w planes, in item w - 1."""
    before = np.int64(-1)
    for x in range(len(positions)):
        gaps[x] = np.uint32(np.int64(positions[x]) - before - 1)
        before = np.int64(positions[x])
    for x in range(len(zigzags)):
        values[x] = np.uint64(zigzags[x]) - ONE
    count_escapes(gaps, gap_escapes)
    count_escapes(values, value_escapes)


@jit
def fill_positions(gaps, size, positions):
    """Returns the last position; fills only those below ``size``."""
    at = -1
    for x in range(len(gaps)):
        at += np.int64(gaps[x]) + 1
        if at >= size:
            return at
        positions[x] = np.int32(at)
    return at


@jit
def split_escaped(values, low, high, escape):
    """Fill planes, one a row: the low ones of all values, and those of what values have above ``escape``."""
    for w in range(low.shape[0]):
        shift = np.uint64(8 * w)
        for x in range(len(values)):
            low[w, x] = np.uint8(min(np.uint64(values[x]), escape) >> shift)
    if high.shape[1] == 0:
        return
    k = 0
    for x in range(len(values)):
        value = np.uint64(values[x])
        if value >= escape:
            for w in range(high.shape[0]):
                high[w, k] = np.uint8((value - escape) >> np.uint64(8 * w))
            k += 1


@jit
def join_planes(planes, values):
    """Values from planes, the lowest in the first row."""
    values[:] = 0
    for w in range(planes.shape[0]):
        shift = np.uint64(8 * w)
        for x in range(len(values)):
            values[x] |= np.uint64(planes[w, x]) << shift


@jit
def add_escaped(values, escape, high, most):
    """Add what stands above the escape; False if a value is above ``most``."""
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
    n = 0
    for x in range(len(values)):
        n += np.uint64(values[x]) == wanted
    return n


def gaps_and_values(positions: Array, zigzags: Units, gap_width: int, width: int) -> tuple[Array, Array, Units, Array]:
    """Unchanged units before each position, from the one before on, and zigzags less one; behind each its escapes. Scratch."""
    gaps, values = scratch("gaps", len(positions), np.uint32), scratch("values", len(zigzags), zigzags.dtype)
    gap_escapes, value_escapes = np.zeros(gap_width, np.int64), np.zeros(width, np.int64)
    fill_gaps_and_values(positions, zigzags, gaps, values, gap_escapes, value_escapes)
    return gaps, gap_escapes, values, value_escapes


def positions_of(gaps: Array, size: int) -> Array:
    """The positions that have these gaps before them; raises ValueError for a position that is not below ``size``."""
    positions = np.empty(len(gaps), np.int32)
    last = fill_positions(gaps, size, positions)
    if last >= size:
        raise ValueError(f"it changes unit {last} of {size}")
    return positions


def best_width(escapes: Array, count: int) -> int:
    """How many low planes give the fewest bytes before compression, given how many values need more than w planes, for each w."""
    counts, width = escapes.tolist(), len(escapes)
    return min((w * count + (width * counts[w - 1] if w < width else 0), w) for w in range(1, width + 1))[1]


def write_escaped(values: Units, escapes: Array, low: int) -> bytes:
    """Escaped values in ``low`` low planes."""
    width = len(escapes)
    escape = (1 << 8 * low) - 1 if low < width else (1 << 64) - 1
    planes, high = _planes("low", low, len(values)), _planes("high", width if low < width else 0, int(escapes[low - 1]))
    split_escaped(values, planes, high, np.uint64(escape))
    return b"".join([write_plane(plane) for plane in (*planes, *high)])


def _planes(name: str, rows: int, count: int) -> Array:
    return scratch(name, rows * count, np.uint8).reshape(rows, count)


def read_escaped(reader: Reader, count: int, width: int, low: int, unit: np.dtype[Any]) -> Units:
    """Inverse of :func:`write_escaped`; values come as ``unit``, whose size is at least ``width``."""
    values = np.empty(count, unit)
    join_planes(_read(reader, "low", low, count), values)
    if low < width:
        escape = np.uint64((1 << 8 * low) - 1)
        high = _read(reader, "high", width, count_equal(values, escape))
        if not add_escaped(values, escape, high, np.uint64((1 << 8 * width) - 1)):
            raise ValueError("an escaped value is too large")
    return values


def _read(reader: Reader, name: str, rows: int, count: int) -> Array:
    planes = _planes(name, rows, count)
    for plane in planes:
        plane[:] = reader.plane(count)
    return planes
