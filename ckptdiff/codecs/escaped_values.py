"""Escaped values (spec section 7.1), and gaps between positions (7.4), as planes."""

# mypy: allow-untyped-calls

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff.codecs.planes import Reader, write_plane
from ckptdiff.format.dtypes import Bytes, Units
from ckptdiff.io.scratch import scratch
from ckptdiff.kernels import escapes

Array = npt.NDArray[Any]


def positions_of(gaps: Array, size: int) -> Array:
    """The positions that have these gaps before them; raises ValueError for a position that is not below ``size``."""
    positions = np.empty(len(gaps), np.int32)
    last = escapes.fill_positions(gaps, size, positions)
    if last >= size:
        raise ValueError(f"it changes unit {last} of {size}")
    return positions


def write_changes(positions: Array, zigzags: Units, gap_width: int, width: int) -> tuple[int, int, bytes]:
    """Gaps of positions and zigzags less one, as escaped values; how many low planes each have, and the planes."""
    n = len(positions)
    gaps, values = scratch("gaps", n, np.uint32), scratch("values", n, zigzags.dtype)
    planes = scratch("low", gap_width * n, np.uint8), scratch("high", width * n, np.uint8)
    g, gap_escapes, w, value_escapes = escapes.split_changes(positions, zigzags, gap_width, width, gaps, values, *planes)
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
    escapes.join_planes(_read(reader, "low", low, count), values)
    if low < width:
        escape = np.uint64((1 << 8 * low) - 1)
        high = _read(reader, "high", width, escapes.count_equal(values, escape))
        if not escapes.add_escaped(values, escape, high, np.uint64((1 << 8 * width) - 1)):
            raise ValueError("an escaped value is too large")
    return values


def _read(reader: Reader, name: str, rows: int, count: int) -> Array:
    planes = _planes(name, rows, count)
    for plane in planes:
        plane[:] = reader.plane(count)
    return planes
