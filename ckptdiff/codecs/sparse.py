"""The ``sparse`` codec: gaps between changed units and their ulp distances (spec section 7.4)."""

from __future__ import annotations

from collections.abc import Sequence

from ckptdiff import codecs
from ckptdiff.codecs.planes import BlockError, PlaneCounts, Reader, read_planes, write_varint
from ckptdiff.format.dtypes import BlockChange, Bytes, Changes, Dtype, ManyChanges, Replacement
from ckptdiff.kernels.block_layout import WITHOUT_ROWS, BlockLayout

GAP_WIDTH = 3
"""Bytes of a gap: a block has at most 2^21 units."""
NO_CHANGES = 0, 1, 0, 1, 0


def pack(base: Bytes | None, change: BlockChange, dtype: Dtype, layout: BlockLayout = WITHOUT_ROWS) -> bytes:
    """Code a block; see :class:`ckptdiff.codecs.Codec`."""
    assert not isinstance(change, Replacement)
    positions, zigzags = change
    if len(positions) == 0:
        return b""
    return pack_all(ManyChanges(positions, zigzags, [0, len(positions)]), dtype)[0]


def pack_all(changes: ManyChanges, dtype: Dtype) -> list[bytes]:
    """Code several blocks, as :func:`pack` does, at once: for small ones that takes a fraction of the time of one by one."""
    found = codecs.escaped_values.write_changes(changes, GAP_WIDTH, dtype.carrier)
    return [_join(count, *planes) if count else b"" for count, planes in zip(changes.counts, found, strict=True)]


def _join(count: int, gap_planes: int, value_planes: int, planes: bytes) -> bytes:
    return write_varint(count) + bytes([gap_planes | value_planes << 4]) + planes


def unpack(coded: memoryview, base: Bytes | None, size: int, dtype: Dtype) -> Changes:
    """Decode a block; see :class:`ckptdiff.codecs.Codec`."""
    return unpack_all([coded], [size], [0], dtype)[0]


def unpack_all(
    blocks: Sequence[memoryview | bytes], sizes: Sequence[int], offsets: Sequence[int], dtype: Dtype
) -> tuple[Changes, list[int]]:
    """Decode several blocks at once: for small ones that takes a fraction of the time of one by one.

    Args:
        blocks: their coded forms.
        sizes: bytes of each.
        offsets: what is added to the positions of each.
        dtype: of the target.

    Returns:
        Their changes, one block behind the other; and how many each has.

    Raises:
        BlockError: a block breaks a rule of the spec; one line says which.
    """
    units, planes = [size // dtype.carrier for size in sizes], list[bytes]()
    rows = [_read(k, block, count, dtype, planes) for k, (block, count) in enumerate(zip(blocks, units, strict=True))]
    return codecs.escaped_values.join_changes(planes, rows, units, offsets, GAP_WIDTH, dtype.unit)


def _read(number: int, coded: memoryview | bytes, units: int, dtype: Dtype, planes: list[bytes]) -> PlaneCounts:
    """Append the planes of a block of so many units to those of others, and tell how many there are."""
    if len(coded) == 0:
        return NO_CHANGES
    reader = Reader(bytes(coded))  # to index bytes takes half the time
    try:
        count = reader.varint()
        if not 1 <= count <= units:
            raise ValueError(f"it has {count} changes, expected 1 to {units}")
        widths = reader.take(1)[0]
        gap_planes, value_planes = widths & 15, widths >> 4
        if not (1 <= gap_planes <= GAP_WIDTH and 1 <= value_planes <= dtype.carrier):
            raise ValueError(f"bad widths: {gap_planes} planes of gaps, {value_planes} of values")
        far = read_planes(reader, count, GAP_WIDTH, gap_planes, planes)
        large = read_planes(reader, count, dtype.carrier, value_planes, planes)
        reader.end()
    except ValueError as error:
        raise BlockError(number, str(error)) from None
    return count, gap_planes, far, value_planes, large
