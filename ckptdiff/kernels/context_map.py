"""Kernels: which context each unit of a block has in the static form of ``context``, and how that is stored (spec section 7.5.3)."""

# mypy: allow-untyped-defs, allow-untyped-calls, no-check-untyped-defs

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff.io.scratch import scratch
from ckptdiff.kernels.block_layout import WITHOUT_ROWS, BlockLayout
from ckptdiff.kernels.jit import jit
from ckptdiff.kernels.raw_bits import BitWriter, for_kernels, new_writer, put_raw, take_raw

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class ContextMap:
    """Which context each unit of a block has: by its class, and the levels of its row and column."""

    lo: int
    """The lowest class; lower ones count as this."""
    hi: int
    """The highest class; higher ones count as this."""
    row_bits: int = 0
    """Bits of a row's level; 0 if all rows have level 0."""
    column_bits: int = 0
    layout: BlockLayout = WITHOUT_ROWS
    """Where the block's rows begin; of no use without levels."""
    row_levels: Array = field(default_factory=lambda: np.zeros(0, np.uint16))
    """uint16, one for each row that the block lies in; empty without levels."""
    column_levels: Array = field(default_factory=lambda: np.zeros(0, np.uint16))
    """uint16, one for each column; empty without levels."""

    @property
    def has_levels(self) -> bool:
        return bool(self.row_bits or self.column_bits)

    @property
    def levels(self) -> int:
        """Contexts of a class: a unit's level is the sum of those of its row and its column."""
        return 2**self.row_bits + 2**self.column_bits - 1

    @property
    def count(self) -> int:
        """How many contexts there are."""
        return (self.hi - self.lo + 1) * self.levels

    @property
    def level_bits(self) -> int:
        """How many bits the levels take."""
        return self.row_bits * len(self.row_levels) + self.column_bits * len(self.column_levels)

    def contexts(self, classes: Array) -> Array:
        """Context of each unit: uint16. Scratch."""
        contexts = scratch("contexts", len(classes), np.uint16)
        layout, row_levels, column_levels = self.layout, self.row_levels, self.column_levels
        if not self.has_levels:
            layout = BlockLayout(1 << 12)  # any rows will do, if they are long
            row_levels, column_levels = np.zeros(layout.rows(len(classes)), np.uint16), np.zeros(layout.width, np.uint16)
        fill_contexts(classes, self.lo, self.hi, self.levels, layout, row_levels, column_levels, contexts)
        return contexts


@jit
def fill_contexts(classes, lo, hi, levels, layout, row_levels, column_levels, contexts):
    """Fill the context of each unit: the first of its class, plus the levels of its row and column.

    Args:
        classes: of each unit: uint8.
        lo, hi: the lowest and the highest class.
        levels: contexts of a class.
        layout: :class:`~ckptdiff.kernels.block_layout.BlockLayout`.
        row_levels, column_levels: uint16, one for each row that the block lies in, and one for each column.
        contexts: uint16, to fill.
    """
    lowest, highest, step = np.uint8(lo), np.uint8(hi), np.int32(levels)
    start, column = 0, layout.phase
    for r in range(len(row_levels)):
        n = min(layout.width - column, len(classes) - start)
        row = np.int32(row_levels[r]) - np.int32(lo) * step
        some, out, level = classes[start : start + n], contexts[start : start + n], column_levels[column : column + n]
        for c in range(n):  # in this form LLVM makes vectors of it, 20 times as fast
            class_ = some[c]
            if class_ < lowest:
                class_ = lowest
            if class_ > highest:
                class_ = highest
            out[c] = np.uint16(np.int32(np.int32(class_) * step) + row + np.int32(level[c]))
        start += n
        column = 0


@jit
def put_fields(values, sizes, raw, writer):
    """Append numbers, each of so many bits: int64 both."""
    for x in range(len(values)):
        writer = put_raw(np.uint64(values[x]), sizes[x], raw, writer)
    return writer


@jit
def put_levels(levels, size, raw, writer):
    """Append levels of ``size`` bits each."""
    for x in range(len(levels)):
        writer = put_raw(np.uint64(levels[x]), size, raw, writer)
    return writer


@jit
def take_levels(levels, size, raw, position):
    """Inverse of :func:`put_levels`: fills ``levels``; returns the position behind them."""
    for x in range(len(levels)):
        part, position = take_raw(size, raw, position)
        levels[x] = np.uint16(part)
    return position


def put_map(mapping: ContextMap, raw: Array) -> BitWriter:
    """Begin the raw bits of a block with its context map; returns the writer behind it."""
    fields = [(mapping.lo, 8), (mapping.hi, 8), (mapping.row_bits, 3), (mapping.column_bits, 3)]
    if mapping.has_levels:
        fields += [(mapping.layout.width, 22), (mapping.layout.phase, 22)]
    values, sizes = np.array(fields, np.int64).T.copy()
    writer = for_kernels(put_fields(values, sizes, raw, new_writer()))
    writer = for_kernels(put_levels(mapping.row_levels, mapping.row_bits, raw, writer))
    return for_kernels(put_levels(mapping.column_levels, mapping.column_bits, raw, writer))


def take_map(classes: Array, raw: Array) -> tuple[ContextMap, int]:
    """The context map with which the raw bits of a block begin, and the position behind it.

    Raises:
        ValueError: with one line that says which rule the map breaks.
    """
    position = 0

    def take(size: int) -> int:
        nonlocal position
        value, position = take_raw(size, raw, position)
        return int(value)

    lo, hi, row_bits, column_bits = take(8), take(8), take(3), take(3)
    if lo > hi:
        raise ValueError(f"its lowest class is {lo}, its highest {hi}")
    if not (row_bits or column_bits):
        return ContextMap(lo, hi), position
    layout = BlockLayout(take(22), take(22))
    if not layout.phase < layout.width <= len(classes):
        raise ValueError(f"rows of {layout.width} units, from {layout.phase} on, in {len(classes)}")
    row_levels, column_levels = np.zeros(layout.rows(len(classes)), np.uint16), np.zeros(layout.width, np.uint16)
    position = take_levels(row_levels, row_bits, raw, position)
    position = take_levels(column_levels, column_bits, raw, position)
    return ContextMap(lo, hi, row_bits, column_bits, layout, row_levels, column_levels), position
