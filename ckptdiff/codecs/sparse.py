"""The ``sparse`` codec: gaps between changed units and their ulp distances (spec section 7.4)."""

from __future__ import annotations

import numpy as np

from ckptdiff import codecs, kernels
from ckptdiff.codecs.planes import Reader, write_varint
from ckptdiff.format.dtypes import Bytes, Changes, Dtype, Units
from ckptdiff.kernels.block_layout import WITHOUT_ROWS, BlockLayout

GAP_WIDTH = 3
GAP_UNIT = np.dtype("<u4")


def encode(base: Bytes, target: Bytes, dtype: Dtype, layout: BlockLayout = WITHOUT_ROWS, found: Changes | None = None) -> tuple[bytes, int]:
    """Code a block; see :mod:`ckptdiff.codecs`."""

    positions, zigzags = found or kernels.changes.changes_of(base, target, dtype)
    return pack(positions, zigzags, dtype), len(positions)


def pack(positions: Units, zigzags: Units, dtype: Dtype) -> bytes:
    """The coded form of a block's changes."""
    if len(positions) == 0:
        return b""

    g, w, planes = codecs.escaped_values.write_changes(positions, zigzags, GAP_WIDTH, dtype.carrier)
    return write_varint(len(positions)) + bytes([g | w << 4]) + planes


def decode(coded: memoryview, base: Bytes, size: int, dtype: Dtype) -> tuple[Bytes, int]:
    """Decode a block; see :mod:`ckptdiff.codecs`."""

    units = base.view(dtype.unit)
    positions, zigzag = unpack(coded, len(units), dtype)
    kernels.changes.shift_units(units, positions, zigzag, dtype, False)
    return base, len(positions)


def unpack(coded: memoryview, size: int, dtype: Dtype) -> tuple[Units, Units]:
    """Inverse of :func:`pack` for a block of ``size`` units; raises ValueError with one line on a coded form that breaks the spec."""
    if len(coded) == 0:
        return np.empty(0, np.int32), np.empty(0, dtype.unit)

    reader = Reader(coded)
    count = reader.varint()
    if not 1 <= count <= size:
        raise ValueError(f"it has {count} changes, expected 1 to {size}")
    widths = reader.take(1)[0]
    g, w = widths & 15, widths >> 4
    if not (1 <= g <= GAP_WIDTH and 1 <= w <= dtype.carrier):
        raise ValueError(f"bad widths: {g} planes of gaps, {w} of values")
    positions = codecs.escaped_values.positions_of(codecs.escaped_values.read_escaped(reader, count, GAP_WIDTH, g, GAP_UNIT), size)
    values = codecs.escaped_values.read_escaped(reader, count, dtype.carrier, w, dtype.unit)
    reader.end()
    if int(values.max()) == (1 << 8 * dtype.carrier) - 1:
        raise ValueError("an ulp distance is too large")
    return positions, values + dtype.unit.type(1)
