"""One tensor's elements in a mask, in the two forms that a mask file has (spec/mask-v1.md), and what is done with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ckptdiff.errors import FormatError, cut
from ckptdiff.format.safetensors import TensorInfo
from ckptdiff.io.source import LocalFile, read_bytes

Bits: TypeAlias = npt.NDArray[np.uint8]
"""Packed elements, the first in the lowest bit of the first byte."""
Row: TypeAlias = npt.NDArray[Any]
"""Elements as a file has them: :data:`Bits`, or where that is less ``<u4``, their rising positions. So a mask takes as much memory as its
file, whatever the shapes in it."""

PIECE = 1 << 17
"""Bytes of packed elements that are unpacked at once."""


def _ones(bits: Bits) -> int:
    return int(np.bitwise_count(bits).sum(dtype=np.int64))


def count_of(row: Row) -> int:
    """Elements of a row."""
    return len(row) if row.itemsize == 4 else _ones(row)


def is_sparse(count: int, elements: int) -> bool:
    """Whether positions are less than bits, and fit."""
    return 4 * count < -(-elements // 8) and elements <= 1 << 32


def row_of(bits: Bits, elements: int) -> Row:
    """Packed elements in the smaller form."""
    if not is_sparse(_ones(bits), elements):
        return bits
    pieces = (np.flatnonzero(np.unpackbits(bits[i : i + PIECE], bitorder="little")) + 8 * i for i in range(0, len(bits), PIECE))
    return np.concatenate([piece.astype("<u4") for piece in pieces])


def row_of_positions(positions: Row, elements: int) -> Row:
    """Rising positions in the smaller form."""
    return positions.astype("<u4") if is_sparse(len(positions), elements) else packed(positions, elements)


def packed(positions: Row, elements: int) -> Bits:
    bits = np.zeros(-(-elements // 8), np.uint8)
    np.bitwise_or.at(bits, positions >> 3, np.uint8(1) << (positions & 7).astype(np.uint8))
    return bits


def shared(a: Row, b: Row) -> int:
    """Elements in both rows."""
    if a.itemsize == b.itemsize == 4:
        return len(np.intersect1d(a, b, assume_unique=True))
    if a.itemsize == b.itemsize:
        return int(np.bitwise_count(a & b).sum(dtype=np.int64))
    bits, positions = (a, b) if a.itemsize == 1 else (b, a)
    return int(np.count_nonzero(bits[positions >> 3] >> (positions & 7).astype(np.uint8) & 1))


def vote(least: int, rows: Sequence[Row], elements: int) -> Row:
    """Elements in at least so many rows; of positions alone without a byte for each element."""
    if all(row.itemsize == 4 for row in rows):
        found, votes = np.unique(np.concatenate(rows), return_counts=True)
        return row_of_positions(found[votes >= least], elements)
    pieces = []
    for start in range(0, -(-elements // 8), PIECE):
        size = min(PIECE, -(-elements // 8) - start)
        votes = np.zeros(8 * size, np.min_scalar_type(len(rows)))
        for row in rows:
            if row.itemsize == 1:
                votes += np.unpackbits(row[start : start + size], bitorder="little")
            else:
                low, high = np.searchsorted(row, (8 * start, 8 * (start + size)))
                votes[row[low:high].astype(np.int64) - 8 * start] += 1
        pieces.append(np.packbits(votes >= least, bitorder="little"))
    return row_of(np.concatenate(pieces), elements)


def read_row(file: LocalFile, start: int, tensor: TensorInfo) -> Row:
    if tensor.dtype not in ("U8", "U32") or len(tensor.shape) != 1:
        raise FormatError(f"{file.name}: tensor {cut(tensor.name)}: expected U8 or U32 of one dimension, found {tensor.dtype}")
    return np.frombuffer(read_bytes(file, start + tensor.begin, tensor.nbytes), "<u1" if tensor.dtype == "U8" else "<u4")


def check_row(row: Row, elements: int, where: str) -> None:
    """Raise FormatError unless a stored row is one of so many elements."""
    size = -(-elements // 8)
    if row.itemsize == 4:
        if elements > 1 << 32:
            raise FormatError(f"{where}: expected U8 for {elements} elements")
        if len(row) == 0 or (row[1:] <= row[:-1]).any() or int(row[-1]) >= elements:
            raise FormatError(f"{where}: expected positions below {elements}, rising")
    elif len(row) != size or not row.any() or (elements % 8 and row[-1] >> elements % 8):
        raise FormatError(f"{where}: expected {size} bytes, none of their bits past the last element, and not all zero")
