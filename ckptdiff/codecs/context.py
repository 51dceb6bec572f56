"""The ``context`` codec: which units changed, and how far, given the base unit (spec section 7.5)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ckptdiff import kernels
from ckptdiff.codecs.planes import Reader, write_varint
from ckptdiff.format.dtypes import BlockChange, Bytes, Changes, Dtype, ManyChanges, Replacement, Units
from ckptdiff.io.scratch import scratch
from ckptdiff.kernels.block_layout import WITHOUT_ROWS, BlockLayout

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
    old, forms = base.view(dtype.unit), []
    dense = is_dense(len(positions), len(old), dtype)
    if dense:
        changes, classes = kernels.ulps.sized_changes(old, positions, zigzags, dtype), kernels.classes.classes_of(old, dtype)
        forms.append(_join(STATIC, *kernels.static.encode(classes, changes, 8 * dtype.carrier, layout, len(old) < THOROUGH_BELOW)))
    if not dense or min(len(old), 3 * len(positions)) < BOTH_BELOW:
        forms += kernels.adaptive_blocks.encode(old, [(0, len(old), 0, len(positions))], positions, zigzags, dtype, ADAPTIVE)
    return min(forms, key=len)


def pack_all(base: Bytes, bounds: Sequence[int], changes: ManyChanges, dtype: Dtype, layout: Callable[[int], BlockLayout]) -> list[bytes]:
    """Code several blocks, as :func:`pack` does, at once: for small ones that takes a fraction of the time of one by one.

    Args:
        base: their bytes in the base, one behind the other.
        bounds: one more than blocks: where each ends, in bytes, from the second on; the first is 0.
        changes: of all blocks.
        dtype: of the target.
        layout: how the block of a number lies in its tensor.
    """
    old, ends, cuts = base.view(dtype.unit), changes.ends, [bound // dtype.carrier for bound in bounds]
    rows = [(cuts[k], cuts[k + 1], ends[k], ends[k + 1]) for k in range(len(bounds) - 1)]
    changed = [k for k, (_, _, start, end) in enumerate(rows) if end > start]
    light = [k for k in changed if not is_dense(rows[k][3] - rows[k][2], rows[k][1] - rows[k][0], dtype)]
    coded = [b""] * len(rows)
    if light:
        found = kernels.adaptive_blocks.encode(old, [rows[k] for k in light], changes.positions, changes.zigzags, dtype, ADAPTIVE)
        for k, block in zip(light, found, strict=True):
            coded[k] = block
    for k in set(changed) - set(light):
        first, stop, start, end = rows[k]
        part = changes.positions[start:end], changes.zigzags[start:end]
        coded[k] = pack(old[first:stop].view(np.uint8), part, dtype, layout(k))
    return coded


def is_dense(changed: int, units: int, dtype: Dtype) -> bool:
    """Whether a block is coded by the static form, and by the other only if it is small."""
    return dtype.carrier < 8 and changed > STATIC_SHARE * units


def _join(form: int, coded: bytes, raw: np.ndarray[Any, Any], bits: int) -> bytes:
    """A coded block: its form, so many raw bits, and the rest."""
    size = (bits + 7) // 8
    return bytes([form]) + write_varint(size) + raw[: (bits + 31) // 32].astype("<u4", copy=False).tobytes()[:size] + coded


def unpack(coded: memoryview, base: Bytes | None, size: int, dtype: Dtype) -> Changes:
    """Decode a block; see :class:`ckptdiff.codecs.Codec`."""
    if len(coded) == 0:
        return np.empty(0, np.int32), np.empty(0, dtype.unit)
    assert base is not None
    units = base.view(dtype.unit)
    found = unpack_all(units, [(0, len(units))], [coded], dtype) if coded[0] == ADAPTIVE else None
    return found[0] if found is not None else _unpack_named(coded, units, dtype)


def _unpack_named(coded: memoryview, units: Units, dtype: Dtype) -> Changes:
    """Decode a block of the static form, or say which rule of the spec a block breaks."""
    reader = Reader(coded)
    form = reader.take(1)[0]
    if form not in (ADAPTIVE, STATIC) or (form == STATIC and dtype.carrier == 8):
        raise ValueError(f"it has the form {form}, expected 1 or 2, and 1 for units of 8 bytes")
    raw_bytes = reader.take(reader.varint())
    raw, rest = _raw_words(raw_bytes), reader.take(len(coded) - reader.position)
    (positions, zigzags), bits = (kernels.adaptive_block.decode_named if form == ADAPTIVE else _decode_static)(units, rest, raw, dtype)
    if (bits + 7) // 8 != len(raw_bytes) or (bits % 8 and raw_bytes[-1] >> bits % 8):
        raise ValueError(f"it takes {bits} raw bits, but has {len(raw_bytes)} bytes of them")
    if len(positions) == 0:
        raise ValueError("it changes nothing")
    if len(zigzags) != len(positions):
        raise ValueError("an ulp distance is too large")
    return positions, zigzags


def unpack_all(
    base: Units, blocks: Sequence[tuple[int, int]], coded: Sequence[memoryview], dtype: Dtype
) -> tuple[Changes, list[int]] | None:
    """Decode several blocks of the adaptive form at once: for small ones that takes a fraction of the time of one by one.

    Args:
        base: units of the base, of all blocks.
        blocks: of each its first unit and the one behind its last.
        coded: their coded forms, none of them empty.
        dtype: of the target.

    Returns:
        The changes of all blocks (scratch), by their number in ``base``, and how many each has; None if one has another form, or breaks a
        rule of the spec, which :func:`unpack` names.
    """
    changes, ends = kernels.adaptive_blocks.decode(base, blocks, coded, dtype, ADAPTIVE)
    return None if -1 in ends else (changes, [end - start for start, end in itertools.pairwise([0, *ends])])


def _raw_words(data: memoryview | bytes) -> np.ndarray[Any, Any]:
    """The words of a block's raw bits, and two zeros. Scratch."""
    words = scratch("raw", len(data) // 4 + 3, np.uint32)
    flat = words.view(np.uint8)
    flat[: len(data)], flat[len(data) :] = np.frombuffer(data, np.uint8), 0
    return words.view("<u4").astype(np.uint32, copy=False)


def _decode_static(units: Units, coded: memoryview | bytes, raw: np.ndarray[Any, Any], dtype: Dtype) -> tuple[Changes, int]:
    """As :func:`ckptdiff.kernels.adaptive_block.decode_named`, of the other form."""
    classes = kernels.classes.classes_of(units, dtype)
    changes, bits = kernels.static.decode(classes, bytes(coded), raw, 8 * dtype.carrier)
    zigzags = scratch("zigzags", len(changes.positions), dtype.unit)
    fits = kernels.ulps.zigzags_of(units, changes, dtype, zigzags)
    return (changes.positions, zigzags if fits else zigzags[:0]), bits
