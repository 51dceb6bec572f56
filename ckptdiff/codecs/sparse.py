"""The ``sparse`` codec: gaps between changed units and their ulp distances (spec section 7.4)."""

from __future__ import annotations

import numpy as np

from ckptdiff.codecs.place import NOWHERE, Place
from ckptdiff.codecs.planes import Reader, best_width, read_escaped, write_escaped, write_varint
from ckptdiff.dtypes import Bytes, Dtype, move_by_zigzag, ulp_zigzag

GAP_WIDTH = 3
GAP_UNIT = np.dtype("<u4")


def encode(base: Bytes, target: Bytes, dtype: Dtype, place: Place = NOWHERE) -> tuple[bytes, int]:
    """Code a block; see :mod:`ckptdiff.codecs`."""
    old, new = base.view(dtype.unit), target.view(dtype.unit)
    positions = np.flatnonzero(old != new)
    if len(positions) == 0:
        return b"", 0
    gaps = (np.diff(positions, prepend=-1) - 1).astype(GAP_UNIT)
    values = ulp_zigzag(old[positions], new[positions], dtype) - dtype.unit.type(1)
    g, w = best_width(gaps, GAP_WIDTH), best_width(values, dtype.carrier)
    head = write_varint(len(positions)) + bytes([g | w << 4])
    return head + write_escaped(gaps, GAP_WIDTH, g) + write_escaped(values, dtype.carrier, w), len(positions)


def decode(coded: memoryview, base: Bytes, size: int, dtype: Dtype) -> tuple[Bytes, int]:
    """Decode a block; see :mod:`ckptdiff.codecs`."""
    if len(coded) == 0:
        return base, 0
    reader, units = Reader(coded), base.view(dtype.unit)
    count = reader.varint()
    if not 1 <= count <= len(units):
        raise ValueError(f"it has {count} changes, expected 1 to {len(units)}")
    widths = reader.take(1)[0]
    g, w = widths & 15, widths >> 4
    if not (1 <= g <= GAP_WIDTH and 1 <= w <= dtype.carrier):
        raise ValueError(f"bad widths: {g} planes of gaps, {w} of values")
    positions = np.cumsum(read_escaped(reader, count, GAP_WIDTH, g, GAP_UNIT), dtype=np.int64)
    positions += np.arange(count)
    if positions[-1] >= len(units):
        raise ValueError(f"it changes unit {positions[-1]} of {len(units)}")
    values = read_escaped(reader, count, dtype.carrier, w, dtype.unit)
    reader.end()
    if int(values.max()) == (1 << 8 * dtype.carrier) - 1:
        raise ValueError("an ulp distance is too large")
    units[positions] = move_by_zigzag(units[positions], values + dtype.unit.type(1), dtype)
    return base, count
