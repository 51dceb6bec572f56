"""The ``context`` codec: which units changed, and how far, given the base unit (spec section 7.5)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ckptdiff import kernels
from ckptdiff.codecs.planes import Reader, write_varint
from ckptdiff.format.dtypes import Bytes, Changes, Dtype, Units
from ckptdiff.kernels.block_layout import WITHOUT_ROWS, BlockLayout

ADAPTIVE, STATIC = 1, 2

DENSE = 1 / 16
"""Above this share of changed units a block is coded by the static form, which takes the same time however many change."""

SMALL = 1 << 18
"""Below this many units levels of two sizes are tried in the static form."""

FEW = 1 << 17
"""Below this many units, or a third as many changes, the adaptive form is tried too where a block is dense."""


def encode(base: Bytes, target: Bytes, dtype: Dtype, layout: BlockLayout = WITHOUT_ROWS, found: Changes | None = None) -> tuple[bytes, int]:
    """Code a block; see :mod:`ckptdiff.codecs`."""

    positions, zigzags = found or kernels.changes.changes_of(base, target, dtype)
    return pack(base, positions, zigzags, dtype, layout), len(positions)


def pack(base: Bytes, positions: Units, zigzags: Units, dtype: Dtype, layout: BlockLayout = WITHOUT_ROWS) -> bytes:
    """The coded form of a block's changes."""

    if len(positions) == 0:
        return b""
    old = base.view(dtype.unit)
    distances, signs = kernels.changes.distances_of(old, positions, zigzags, dtype)
    classes, m = kernels.changes.classes_of(old, dtype), 8 * dtype.carrier
    dense = dtype.carrier < 8 and len(positions) > DENSE * len(old)
    forms = []
    if dense:
        forms.append(_join(STATIC, *kernels.static.encode(classes, positions, distances, signs, m, layout, len(old) < SMALL)))
    if not dense or min(len(old), 3 * len(positions)) < FEW:
        forms.append(_join(ADAPTIVE, *kernels.adaptive.encode(classes, positions, distances, signs, m)))
    return min(forms, key=len)


def _join(form: int, coded: bytes, raw: np.ndarray[Any, Any], bits: int) -> bytes:
    size = (bits + 7) // 8
    return bytes([form]) + write_varint(size) + raw.astype("<u4").tobytes()[:size] + coded


def decode(coded: memoryview, base: Bytes, size: int, dtype: Dtype) -> tuple[Bytes, int]:
    """Decode a block; see :mod:`ckptdiff.codecs`."""
    if len(coded) == 0:
        return base, 0

    positions, zigzags = unpack(coded, base, dtype)
    kernels.changes.shift_units(base.view(dtype.unit), positions, zigzags, dtype, False)
    return base, len(positions)


def unpack(coded: memoryview, base: Bytes, dtype: Dtype) -> tuple[Units, Units]:
    """Positions of a block's changes, and the zigzag of their ulp distances, given its base; raises ValueError as :func:`decode`."""
    if len(coded) == 0:
        return np.empty(0, np.int32), np.empty(0, dtype.unit)

    units = base.view(dtype.unit)
    positions, distances, signs = _changes(coded, units, dtype)
    zigzags = np.empty(len(positions), dtype.unit)
    if not kernels.changes.zigzags_of_distances(units, positions, distances, signs, dtype, zigzags):
        raise ValueError("an ulp distance is too large")
    return positions, zigzags


def _changes(coded: memoryview, units: Units, dtype: Dtype) -> tuple[Units, Units, Bytes]:
    """Positions, distances and sides of a block's changes. Scratch."""

    reader, m = Reader(coded), 8 * dtype.carrier
    form = reader.take(1)[0]
    if form not in (ADAPTIVE, STATIC) or (form == STATIC and dtype.carrier == 8):
        raise ValueError(f"it has the form {form}, expected 1 or 2, and 1 for units of 8 bytes")
    raw_bytes = bytes(reader.take(reader.varint()))
    raw = np.frombuffer(raw_bytes + bytes(-len(raw_bytes) % 4 + 8), "<u4").astype(np.uint32)
    classes = kernels.changes.classes_of(units, dtype)
    if form == ADAPTIVE:
        positions, distances, signs, bits = kernels.adaptive.decode(classes, bytes(reader.take(len(coded) - reader.position)), raw, m)
    else:
        positions, distances, signs, bits = kernels.static.decode(classes, bytes(reader.take(len(coded) - reader.position)), raw, m)
    if (bits + 7) // 8 != len(raw_bytes) or (bits % 8 and raw_bytes[-1] >> bits % 8):
        raise ValueError(f"it takes {bits} raw bits, but has {len(raw_bytes)} bytes of them")
    if len(positions) == 0:
        raise ValueError("it changes nothing")
    return positions, distances, signs
