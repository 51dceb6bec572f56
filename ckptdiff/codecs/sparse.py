"""The ``sparse`` codec: gaps between changed units and their ulp distances (spec section 7.4)."""

from __future__ import annotations

import numpy as np

from ckptdiff import codecs, kernels
from ckptdiff.codecs.planes import Reader, write_varint
from ckptdiff.format.dtypes import Bytes, Changes, Dtype, Units
from ckptdiff.kernels.block_layout import WITHOUT_ROWS, BlockLayout

GAP_WIDTH = 3
"""Bytes of a gap: a block has at most 2^21 units."""
GAP_UNIT = np.dtype("<u4")


def encode(
    base: Bytes, target: Bytes, dtype: Dtype, layout: BlockLayout = WITHOUT_ROWS, changes: Changes | None = None
) -> tuple[bytes, int]:
    """Code a block; see :class:`ckptdiff.codecs.Codec`."""
    positions, zigzags = changes or kernels.changes.changes_of(base, target, dtype)
    return pack(positions, zigzags, dtype), len(positions)


def pack(positions: Units, zigzags: Units, dtype: Dtype) -> bytes:
    """The coded form of a block's changes."""
    if len(positions) == 0:
        return b""
    gap_planes, value_planes, planes = codecs.escaped_values.write_changes(positions, zigzags, GAP_WIDTH, dtype.carrier)
    return write_varint(len(positions)) + bytes([gap_planes | value_planes << 4]) + planes


def decode(coded: memoryview, base: Bytes, size: int, dtype: Dtype) -> tuple[Bytes, int]:
    """Decode a block; see :class:`ckptdiff.codecs.Codec`."""
    units = base.view(dtype.unit)
    positions, zigzags = unpack(coded, len(units), dtype)
    kernels.moves.move_units(units, positions, zigzags, dtype, False)
    return base, len(positions)


def unpack(coded: memoryview, size: int, dtype: Dtype) -> Changes:
    """Inverse of :func:`pack` for a block of ``size`` units.

    Raises:
        ValueError: with one line that says which rule of the spec the coded bytes break.
    """
    if len(coded) == 0:
        return np.empty(0, np.int32), np.empty(0, dtype.unit)
    reader = Reader(coded)
    count = reader.varint()
    if not 1 <= count <= size:
        raise ValueError(f"it has {count} changes, expected 1 to {size}")
    widths = reader.take(1)[0]
    gap_planes, value_planes = widths & 15, widths >> 4
    if not (1 <= gap_planes <= GAP_WIDTH and 1 <= value_planes <= dtype.carrier):
        raise ValueError(f"bad widths: {gap_planes} planes of gaps, {value_planes} of values")
    gaps = codecs.escaped_values.read_escaped(reader, count, GAP_WIDTH, gap_planes, GAP_UNIT)
    positions = codecs.escaped_values.positions_of(gaps, size)
    values = codecs.escaped_values.read_escaped(reader, count, dtype.carrier, value_planes, dtype.unit)
    reader.end()
    if int(values.max()) == (1 << 8 * dtype.carrier) - 1:
        raise ValueError("an ulp distance is too large")
    return positions, values + dtype.unit.type(1)
