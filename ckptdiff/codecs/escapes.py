"""Kernels of escaped values (spec section 7.1), and of gaps between positions (7.4)."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff.codecs.jit import ONE, ZERO, jit
from ckptdiff.codecs.planes import Reader, write_plane
from ckptdiff.dtypes import Bytes, Units
from ckptdiff.scratch import scratch

Array = npt.NDArray[Any]


@jit
def count_escapes(values, escape):
    n = 0
    for x in range(len(values)):
        n += np.uint64(values[x]) >= escape
    return n


@jit
def best_width(values, width):
    """How many low planes give the fewest bytes before compression."""
    best, size = width, width * len(values)
    for w in range(width - 1, 0, -1):
        found = w * len(values) + width * count_escapes(values, (ONE << np.uint64(8 * w)) - ONE)
        if found <= size:
            best, size = w, found
    return best


@jit
def split_escaped(values, width, low, planes):
    """Fill planes, one behind the other: the low ones of all values, and those of what values have above the escape. Returns how many."""
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
    """Planes of the gaps before positions, and of zigzags less one; returns how many low planes, and how many escapes, each have."""
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
    """Returns the last position; fills only those below ``size``."""
    at = -1
    for x in range(len(gaps)):
        at += np.int64(gaps[x]) + 1
        if at >= size:
            return at
        positions[x] = np.int32(at)
    return at


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


def positions_of(gaps: Array, size: int) -> Array:
    """The positions that have these gaps before them; raises ValueError for a position that is not below ``size``."""
    positions = np.empty(len(gaps), np.int32)
    last = fill_positions(gaps, size, positions)
    if last >= size:
        raise ValueError(f"it changes unit {last} of {size}")
    return positions


def write_changes(positions: Array, zigzags: Units, gap_width: int, width: int) -> tuple[int, int, bytes]:
    """Gaps of positions and zigzags less one, as escaped values; how many low planes each have, and the planes."""
    n = len(positions)
    gaps, values = scratch("gaps", n, np.uint32), scratch("values", n, zigzags.dtype)
    planes = scratch("low", gap_width * n, np.uint8), scratch("high", width * n, np.uint8)
    g, gap_escapes, w, value_escapes = split_changes(positions, zigzags, gap_width, width, gaps, values, *planes)
    return g, w, write_planes(planes[0], n, gap_width, g, gap_escapes) + write_planes(planes[1], n, width, w, value_escapes)


def write_planes(planes: Bytes, count: int, width: int, low: int, escapes: int) -> bytes:
    """What :func:`split_escaped` made of ``count`` values."""
    ends = [count * k for k in range(low + 1)] + [count * low + escapes * k for k in range(1, width + 1) if escapes]
    return b"".join([write_plane(planes[i:j]) for i, j in itertools.pairwise(ends)])


def _planes(name: str, rows: int, count: int) -> Array:
    return scratch(name, rows * count, np.uint8).reshape(rows, count)


def read_escaped(reader: Reader, count: int, width: int, low: int, unit: np.dtype[Any]) -> Units:
    """Inverse of :func:`write_planes`; values come as ``unit``, whose size is at least ``width``."""
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
