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
    """The positions that have these gaps before them.

    Raises:
        ValueError: a position is not below ``size``.
    """
    positions = np.empty(len(gaps), np.int32)
    last = escapes.fill_positions(gaps, size, positions)
    if last >= size:
        raise ValueError(f"it changes unit {last} of {size}")
    return positions


def write_changes(positions: Array, zigzags: Units, gap_width: int, width: int) -> tuple[int, int, bytes]:
    """The gaps before positions, and the zigzags less one, as escaped values.

    Args:
        positions, zigzags: the changes of a block.
        gap_width, width: bytes of a gap, and of a zigzag.

    Returns:
        How many low planes gaps have, how many values have, and the planes of both.
    """
    n = len(positions)
    gaps, values = scratch("gaps", n, np.uint32), scratch("values", n, zigzags.dtype)
    planes = scratch("low", gap_width * n, np.uint8), scratch("high", width * n, np.uint8)
    low_gaps, gap_escapes, low_values, value_escapes = escapes.split_changes(positions, zigzags, gap_width, width, gaps, values, *planes)
    coded = write_planes(planes[0], n, gap_width, low_gaps, gap_escapes) + write_planes(planes[1], n, width, low_values, value_escapes)
    return low_gaps, low_values, coded


def write_planes(planes: Bytes, count: int, width: int, low: int, escaped: int) -> bytes:
    """The planes of ``count`` values that a kernel has split, of which ``escaped`` have high planes."""
    ends = [count * k for k in range(low + 1)] + [count * low + escaped * k for k in range(1, width + 1) if escaped]
    return b"".join([write_plane(planes[i:j]) for i, j in itertools.pairwise(ends)])


def read_escaped(reader: Reader, count: int, width: int, low: int, unit: np.dtype[Any]) -> Units:
    """Read ``count`` values of ``width`` bytes that have ``low`` low planes.

    Args:
        reader: stands before the planes.
        width: bytes of a value.
        low: how many low planes there are.
        unit: the type of the result, of at least ``width`` bytes.

    Raises:
        ValueError: with one line that says which rule of spec 7.1 the planes break.
    """
    values = np.empty(count, unit)
    escapes.join_planes(_read_planes(reader, "low", low, count), values)
    escape = np.uint64((1 << 8 * low) - 1)
    if low < width and (escaped := escapes.count_equal(values, escape)):
        high = _read_planes(reader, "high", width, escaped)
        if not escapes.add_escaped(values, escape, high, np.uint64((1 << 8 * width) - 1)):
            raise ValueError("an escaped value is too large")
    return values


def _read_planes(reader: Reader, name: str, rows: int, count: int) -> Array:
    """The next planes, one in a row. Scratch of that name."""
    planes = scratch(name, rows * count, np.uint8).reshape(rows, count)
    for plane in planes:
        plane[:] = reader.plane(count)
    return planes
