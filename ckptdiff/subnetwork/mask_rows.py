"""Rows of a mask: the elements of one tensor, in one of the two forms that a mask file has (spec/mask-v1.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ckptdiff.analysis.values import count_ones
from ckptdiff.errors import FormatError, cut
from ckptdiff.format.tensor_type import TensorInfo
from ckptdiff.io.source import LocalFile, read_bytes

Bits: TypeAlias = npt.NDArray[np.uint8]
"""Packed elements: one bit for each element of the tensor, the first in the lowest bit of the first byte."""
Row: TypeAlias = npt.NDArray[Any]
"""Elements as a file has them: :data:`Bits`, or, where that is smaller, their positions in rising order as ``<u4``. So a mask takes as much
memory as its file, whatever the shapes in it."""

OF_POSITIONS: dict[str, Callable[[Row, Row], Row]] = {
    "and": partial(np.intersect1d, assume_unique=True),
    "or": np.union1d,
    "xor": partial(np.setxor1d, assume_unique=True),
    "minus": partial(np.setdiff1d, assume_unique=True),
}
"""Operations on two sets of positions, each in rising order; so is what they give."""
OF_BITS: dict[str, Callable[[Bits, Bits], Bits]] = {
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "minus": lambda x, y: x & ~y,
}
"""The same operations on packed elements."""
BYTES_AT_ONCE = 1 << 17
"""Bytes of packed elements that are unpacked at a time."""


def count_elements(row: Row) -> int:
    """Number of elements in a row."""
    return len(row) if row.itemsize == 4 else count_ones(row)


def is_sparse(count: int, elements: int) -> bool:
    """Whether ``count`` of a tensor's elements take less room as positions than as bits, and 32 bits are enough for a position."""
    return 4 * count < -(-elements // 8) and elements <= 1 << 32


def row_from_bits(bits: Bits, elements: int) -> Row:
    """A row of packed elements, in the smaller form."""
    if not is_sparse(count_ones(bits), elements):
        return bits
    pieces = (
        np.flatnonzero(np.unpackbits(bits[i : i + BYTES_AT_ONCE], bitorder="little")) + 8 * i for i in range(0, len(bits), BYTES_AT_ONCE)
    )
    return np.concatenate([piece.astype("<u4") for piece in pieces])


def row_from_positions(positions: Row, elements: int) -> Row:
    """A row of elements given by their positions in rising order, in the smaller form."""
    return positions.astype("<u4") if is_sparse(len(positions), elements) else pack_positions(positions, elements)


def pack_positions(positions: Row, elements: int) -> Bits:
    """Packed elements, given by their positions."""
    bits = np.zeros(-(-elements // 8), np.uint8)
    np.bitwise_or.at(bits, positions >> 3, np.uint8(1) << (positions & 7).astype(np.uint8))
    return bits


def flags_of(row: Row, elements: int) -> npt.NDArray[np.bool_]:
    """Whether each of a tensor's elements is in a row."""
    if row.itemsize == 1:
        return np.unpackbits(row, count=elements, bitorder="little").view(np.bool_)
    flags = np.zeros(elements, np.bool_)
    flags[row] = True
    return flags


def positions_of(row: Row, elements: int) -> npt.NDArray[np.int64]:
    """The positions of a row's elements, rising."""
    return row.astype(np.int64) if row.itemsize == 4 else np.flatnonzero(flags_of(row, elements))


def combine_rows(a: Row, b: Row, operation: str, elements: int) -> Row:
    """The elements of two rows of one tensor by a set operation: ``and``, ``or``, ``xor``, or ``minus`` (those of the first alone)."""
    if a.itemsize == b.itemsize == 4:
        return row_from_positions(OF_POSITIONS[operation](a, b), elements)
    x, y = (row if row.itemsize == 1 else pack_positions(row, elements) for row in (a, b))
    return row_from_bits(OF_BITS[operation](x, y), elements)


def complement_row(row: Row, elements: int) -> Row:
    """The elements of a tensor that are not in a row."""
    bits = ~(row if row.itemsize == 1 else pack_positions(row, elements))
    if elements % 8:
        bits[-1] &= np.uint8((1 << elements % 8) - 1)
    return row_from_bits(bits, elements)


def empty_row(elements: int) -> Row:
    """None of a tensor's elements."""
    return row_from_positions(np.empty(0, np.int64), elements)


def count_shared(a: Row, b: Row) -> int:
    """Number of elements that are in both rows."""
    if a.itemsize == b.itemsize == 4:
        return len(np.intersect1d(a, b, assume_unique=True))
    if a.itemsize == b.itemsize:
        return count_ones(np.bitwise_and(a, b, dtype=np.uint8))
    bits, positions = (a, b) if a.itemsize == 1 else (b, a)
    return int(np.count_nonzero(bits[positions >> 3] >> (positions & 7).astype(np.uint8) & 1))


def vote_rows(least: int, rows: Sequence[Row], elements: int) -> Row:
    """The elements that are in at least ``least`` of the rows. Where all rows are positions, no memory is taken for other elements."""
    if all(row.itemsize == 4 for row in rows):
        positions, votes = np.unique(np.concatenate(rows), return_counts=True)
        return row_from_positions(positions[votes >= least], elements)
    pieces = []
    for start in range(0, -(-elements // 8), BYTES_AT_ONCE):
        size = min(BYTES_AT_ONCE, -(-elements // 8) - start)
        votes = np.zeros(8 * size, np.min_scalar_type(len(rows)))
        for row in rows:
            if row.itemsize == 1:
                votes += np.unpackbits(row[start : start + size], bitorder="little")
            else:
                low, high = np.searchsorted(row, (8 * start, 8 * (start + size)))
                votes[row[low:high].astype(np.int64) - 8 * start] += 1
        pieces.append(np.packbits(votes >= least, bitorder="little"))
    return row_from_bits(np.concatenate(pieces), elements)


def read_row(file: LocalFile, start: int, tensor: TensorInfo) -> Row:
    """A row of a mask file whose data begins at the byte ``start``. Raises FormatError if it has neither of the two forms."""
    if tensor.dtype not in ("U8", "U32") or len(tensor.shape) != 1:
        raise FormatError(f"{file.name}: tensor {cut(tensor.name)}: expected U8 or U32 of one dimension, found {tensor.dtype}")
    return np.frombuffer(read_bytes(file, start + tensor.begin, tensor.nbytes), "<u1" if tensor.dtype == "U8" else "<u4")


def check_row(row: Row, elements: int, where: str) -> None:
    """Raise FormatError unless a stored row is one of a tensor of so many elements."""
    size = -(-elements // 8)
    if row.itemsize == 4:
        if elements > 1 << 32:
            raise FormatError(f"{where}: expected U8 for {elements} elements")
        if len(row) == 0 or (row[1:] <= row[:-1]).any() or int(row[-1]) >= elements:
            raise FormatError(f"{where}: expected positions below {elements}, rising")
    elif len(row) != size or not row.any() or (elements % 8 and row[-1] >> elements % 8):
        raise FormatError(f"{where}: expected {size} bytes, none of their bits past the last element, and not all zero")
