"""The ``sparse`` codec: gaps between changed units and their ulp distances (spec section 7.4)."""

from __future__ import annotations

import numpy as np

from ckptdiff import codecs
from ckptdiff.codecs.planes import Reader, write_varint
from ckptdiff.format.dtypes import BlockChange, Bytes, Changes, Dtype, Replacement
from ckptdiff.kernels.block_layout import WITHOUT_ROWS, BlockLayout

GAP_WIDTH = 3
"""Bytes of a gap: a block has at most 2^21 units."""
GAP_UNIT = np.dtype("<u4")


def pack(base: Bytes | None, change: BlockChange, dtype: Dtype, layout: BlockLayout = WITHOUT_ROWS) -> bytes:
    """Code a block; see :class:`ckptdiff.codecs.Codec`."""
    assert not isinstance(change, Replacement)
    positions, zigzags = change
    if len(positions) == 0:
        return b""
    gap_planes, value_planes, planes = codecs.escaped_values.write_changes(positions, zigzags, GAP_WIDTH, dtype.carrier)
    return write_varint(len(positions)) + bytes([gap_planes | value_planes << 4]) + planes


def unpack(coded: memoryview, base: Bytes | None, size: int, dtype: Dtype) -> Changes:
    """Decode a block; see :class:`ckptdiff.codecs.Codec`."""
    if len(coded) == 0:
        return np.empty(0, np.int32), np.empty(0, dtype.unit)
    reader, units = Reader(coded), size // dtype.carrier
    count = reader.varint()
    if not 1 <= count <= units:
        raise ValueError(f"it has {count} changes, expected 1 to {units}")
    widths = reader.take(1)[0]
    gap_planes, value_planes = widths & 15, widths >> 4
    if not (1 <= gap_planes <= GAP_WIDTH and 1 <= value_planes <= dtype.carrier):
        raise ValueError(f"bad widths: {gap_planes} planes of gaps, {value_planes} of values")
    gaps = codecs.escaped_values.read_escaped(reader, count, GAP_WIDTH, gap_planes, GAP_UNIT)
    positions = codecs.escaped_values.positions_of(gaps, units)
    values = codecs.escaped_values.read_escaped(reader, count, dtype.carrier, value_planes, dtype.unit)
    reader.end()
    if int(values.max()) == (1 << 8 * dtype.carrier) - 1:
        raise ValueError("an ulp distance is too large")
    return positions, values + dtype.unit.type(1)
