"""The ``context`` codec: which units changed, and how far, given the base unit (spec section 7.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ckptdiff import kernels
from ckptdiff.codecs.planes import Reader, write_varint
from ckptdiff.format.dtypes import BlockChange, Bytes, Changes, Dtype, Replacement, Units
from ckptdiff.kernels.block_layout import WITHOUT_ROWS, BlockLayout

if TYPE_CHECKING:
    from ckptdiff.kernels.ulps import SizedChanges

ADAPTIVE, STATIC = 1, 2
"""The forms of a block: its first byte."""

STATIC_SHARE = 1 / 16
"""Above this share of changed units a block is coded by the static form, which takes the same time however many change."""

THOROUGH_BELOW = 1 << 18
"""In a block of fewer units the static form tries levels of rows and columns of two sizes."""

BOTH_BELOW = 1 << 17
"""In a dense block of fewer units, or of fewer changes than a third of this, the adaptive form is tried too."""


def pack(base: Bytes | None, change: BlockChange, dtype: Dtype, layout: BlockLayout = WITHOUT_ROWS) -> bytes:
    """Code a block, in the smaller form where both are tried; see :class:`ckptdiff.codecs.Codec`."""
    assert base is not None and not isinstance(change, Replacement)
    positions, zigzags = change
    if len(positions) == 0:
        return b""
    old = base.view(dtype.unit)
    changes = kernels.ulps.sized_changes(old, positions, zigzags, dtype)
    classes, m = kernels.classes.classes_of(old, dtype), 8 * dtype.carrier
    dense = dtype.carrier < 8 and len(positions) > STATIC_SHARE * len(old)
    forms = []
    if dense:
        forms.append(_join(STATIC, *kernels.static.encode(classes, changes, m, layout, len(old) < THOROUGH_BELOW)))
    if not dense or min(len(old), 3 * len(positions)) < BOTH_BELOW:
        forms.append(_join(ADAPTIVE, *kernels.adaptive.encode(classes, changes, m)))
    return min(forms, key=len)


def _join(form: int, coded: bytes, raw: np.ndarray[Any, Any], bits: int) -> bytes:
    """A coded block: its form, so many raw bits, and the rest."""
    size = (bits + 7) // 8
    return bytes([form]) + write_varint(size) + raw.astype("<u4").tobytes()[:size] + coded


def unpack(coded: memoryview, base: Bytes | None, size: int, dtype: Dtype) -> Changes:
    """Decode a block; see :class:`ckptdiff.codecs.Codec`."""
    if len(coded) == 0:
        return np.empty(0, np.int32), np.empty(0, dtype.unit)
    assert base is not None
    units = base.view(dtype.unit)
    changes = _read_changes(coded, units, dtype)
    zigzags = np.empty(len(changes.positions), dtype.unit)
    if not kernels.ulps.zigzags_of(units, changes, dtype, zigzags):
        raise ValueError("an ulp distance is too large")
    return changes.positions, zigzags


def _read_changes(coded: memoryview, units: Units, dtype: Dtype) -> SizedChanges:
    """The changes of a block as they are coded. Scratch."""
    reader, m = Reader(coded), 8 * dtype.carrier
    form = reader.take(1)[0]
    if form not in (ADAPTIVE, STATIC) or (form == STATIC and dtype.carrier == 8):
        raise ValueError(f"it has the form {form}, expected 1 or 2, and 1 for units of 8 bytes")
    raw_bytes = bytes(reader.take(reader.varint()))
    raw = np.frombuffer(raw_bytes + bytes(-len(raw_bytes) % 4 + 8), "<u4").astype(np.uint32)
    rest, classes = bytes(reader.take(len(coded) - reader.position)), kernels.classes.classes_of(units, dtype)
    decode_form = kernels.adaptive.decode if form == ADAPTIVE else kernels.static.decode
    changes, bits = decode_form(classes, rest, raw, m)
    if (bits + 7) // 8 != len(raw_bytes) or (bits % 8 and raw_bytes[-1] >> bits % 8):
        raise ValueError(f"it takes {bits} raw bits, but has {len(raw_bytes)} bytes of them")
    if len(changes.positions) == 0:
        raise ValueError("it changes nothing")
    return changes
