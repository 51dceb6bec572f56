"""Update sparsity and how far elements moved, counted in one pass over both checkpoints, block by block.

Mukherjee, Yuan, Hakkani-Tur, Peng, "Reinforcement Learning Finetunes Small Subnetworks in Large Language Models" (arXiv
2505.11711), section 3: sparsity(theta0, theta1) = 1 - ||theta1 - theta0||_0 / n, where two bf16 values count as equal if they
differ by at most 1e-5.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ckptdiff import kernels
from ckptdiff.analysis.values import SMALL_FLOATS, element_bits, values_of
from ckptdiff.format.dtypes import DTYPES, Bytes
from ckptdiff.io.scratch import scratch
from ckptdiff.kernels.bins import HIGHEST, LOWEST, ULP_OCTAVES

Array = npt.NDArray[Any]
Key = TypeVar("Key", bound=Hashable)

EXPONENT_FIELDS = {"F16": (10, 31, 15), "BF16": (7, 255, 127), "F32": (23, 255, 127), "C64": (23, 255, 127), "F64": (52, 2047, 1023)}
EXPONENT_FIELDS |= {name: (m, (1 << e) - 1, bias) for name, (e, m, bias, _) in SMALL_FLOATS.items()}
"""Where the exponent of a float is: the number of bits below it, its mask once it is shifted down, and its bias."""

MIN_MERGED_CHANGES = 1 << 15
"""Changes of a block from which equal moves of 16-bit floats are merged before they are examined."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Numbers of elements. d is target minus base, in float64: exact for floats of at most 32 bits, except for the last rounding."""

    elements: int = 0
    """All elements; a complex number counts as its two parts."""
    bit_identical: int = 0
    """Elements that have the same bits in both."""
    equal: int = 0
    """Elements of the same value. -0.0 equals +0.0; a NaN equals only a NaN of the same bits."""
    within_atol: int = 0
    """Elements with |d| <= atol, or the same bits. The paper's sparsity is within_atol / elements at 1e-5 (section 3)."""
    within_rtol: int = 0
    """Elements with |d| <= rtol * |base|, both finite, or the same bits (Zhu et al., arXiv 2511.08567: 1e-3)."""
    within_atol_rounded: int = 0
    """As the paper's released code counts: d is rounded to the tensor's dtype, and so is atol (in bf16 1e-5 becomes 1.0014e-5)."""
    one_ulp: int = 0
    """Elements that moved by one ulp (spec 7.2), up or down. Between -0.0 and +0.0 there is no move."""
    up: int = 0
    """Elements whose value grew."""
    down: int = 0
    """Elements whose value fell."""

    @classmethod
    def from_numbers(cls, numbers: Iterable[int]) -> Counts:
        """Counts from numbers in the order of :data:`COUNT_FIELDS`."""
        return cls(**dict(zip(COUNT_FIELDS, map(int, numbers), strict=True)))

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in COUNT_FIELDS})

    @property
    def changed(self) -> int:
        """Elements whose bits differ."""
        return self.elements - self.bit_identical

    @property
    def sparsity(self) -> float:
        """Update sparsity by bits: bit_identical / elements; 1 for no elements."""
        return self.bit_identical / self.elements if self.elements else 1.0


def sums_by(counts: Iterable[tuple[Key, Counts]]) -> dict[Key, Counts]:
    """Sums of counts that have the same key, in the order in which the keys come."""
    sums: dict[Key, Counts] = {}
    for key, count in counts:
        sums[key] = sums[key] + count if key in sums else count
    return sums


COUNT_FIELDS = tuple(f.name for f in fields(Counts))

EXPONENT_BINS = 2400
"""Bins of the exponents of base values; the first is that of zeros and subnormals."""
ZERO_EXPONENT_BIN = 1100
"""The bin of the exponent 0, that is of values from 1 to 2."""


@dataclass(slots=True)
class Histograms:
    """Histograms over elements of a tensor, or of many tensors."""

    ulps: Array
    """Changed elements by distance in ulps: bin k counts distances from 2^k to 2^(k + 1) - 1."""
    moves: Array
    """Changed elements by the binary exponent of |d|, from :data:`~ckptdiff.kernels.bins.LOWEST` on."""
    exponents: Array
    """Elements by the binary exponent of their base value, see :data:`EXPONENT_BINS`."""
    changed_exponents: Array
    """Changed elements by the binary exponent of their base value."""

    @classmethod
    def empty(cls) -> Histograms:
        """Histograms that have counted nothing."""
        return cls(*(np.zeros(n, np.int64) for n in (ULP_OCTAVES, HIGHEST - LOWEST + 1, EXPONENT_BINS, EXPONENT_BINS)))

    def add(self, other: Histograms) -> None:
        """Add the counts of other elements."""
        for name in ("ulps", "moves", "exponents", "changed_exponents"):
            getattr(self, name)[:] += getattr(other, name)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far apart elements may be to count as unchanged."""

    atol: float = 1e-5
    """Absolute: |d| <= atol."""
    rtol: float = 1e-3
    """Relative: |d| <= rtol * |base|."""


@dataclass(slots=True)
class BlockCounts:
    """The counts of one block."""

    numbers: Array
    """Numbers in the order of :data:`COUNT_FIELDS`."""
    first_row: int
    """Row of the tensor in which the block begins."""
    rows: Array
    """Changed elements in each row that the block reaches, from ``first_row`` on."""
    first_column: int
    """Column of the block's first element."""
    columns: Array
    """Changed elements in each column that the block reaches, from ``first_column`` on, and after the last column from the first one on."""
    exponents: Array
    """[3, k] exponent fields of the base's values that occur, from the least on, the elements of each, and how many of them changed; no
    columns for dtypes without exponents."""


class BlockCounter:
    """Counts blocks of one dtype, on one thread.

    What is not counted by tensor adds up in bins. Each has two or four rows, of which the kernels use one after the other (see
    :mod:`ckptdiff.kernels.histogram`).
    """

    def __init__(self, dtype: str, tolerance: Tolerance) -> None:
        self._parts = 2 if dtype == "C64" else 1
        self._dtype = dtype = "F32" if dtype == "C64" else dtype
        row, (shift, mask, _) = DTYPES[dtype], EXPONENT_FIELDS.get(dtype, (0, 0, 0))
        unused = 8 - row.bits if row.bits < 8 else 0  # elements of less than a byte are shifted to its highest bits
        order = kernels.ulps.order_of(row)._replace(is_float=row.is_float or unused > 0)
        self._layout = kernels.histogram.ElementLayout(np.uint64(shift), np.uint64(mask), np.uint64(unused), order)
        largest = _largest_within(tolerance.atol, dtype)
        self._tolerances = kernels.histogram.Tolerances(float(tolerance.atol), float(tolerance.rtol), largest)
        self._exponents = np.zeros((4, mask + 1), np.int64)
        self._bins = kernels.histogram.MoveBins(*(np.zeros((2, n), np.int64) for n in (ULP_OCTAVES, HIGHEST - LOWEST + 1, mask + 1)))
        self._before = np.zeros((2, mask + 1), np.int64)

    def count(self, old: Bytes, new: Bytes, width: int, first: int) -> BlockCounts:
        """Count one block.

        Args:
            old, new: the block's bytes in base and target.
            width: number of elements in a row of the tensor; 0 if changes are not counted by row and column.
            first: index in the tensor of the block's first element.
        """
        width, first = self._parts * width, self._parts * first
        a, b = element_bits(old, self._dtype), element_bits(new, self._dtype)
        positions = kernels.changes.differing(a, b)
        if self._dtype in EXPONENT_FIELDS:
            kernels.histogram.count_exponents(a, self._layout, self._exponents)
        row, start = divmod(first, width) if width else (0, 0)
        rows = np.zeros(-(-(start + len(a)) // width) if width else 0, np.int64)
        columns = np.zeros(min(width, len(a)), np.int64)
        numbers = np.zeros(len(COUNT_FIELDS), np.int64)
        numbers[0], numbers[1 : COUNT_FIELDS.index("one_ulp")] = len(a), len(a) - len(positions)
        if len(positions):
            self._count_changes(a, b, positions, numbers)
            if width:
                kernels.histogram.count_lines(positions, width, start, rows, columns)
        return BlockCounts(numbers, row, rows, start, columns, self._new_exponents())

    def _new_exponents(self) -> Array:
        """The exponents that were counted since the last call, as :attr:`BlockCounts.exponents`."""
        if self._dtype not in EXPONENT_FIELDS:
            return np.zeros((3, 0), np.int64)
        now = np.stack([self._exponents.sum(0), self._bins.exponents.sum(0)])
        new, self._before = now - self._before, now
        (there,) = np.nonzero(new[0])
        return np.concatenate([there[np.newaxis], new[:, there]])

    def _count_changes(self, a: Array, b: Array, positions: Array, numbers: Array) -> None:
        """Count how the elements at some positions changed, into ``numbers`` and the bins."""
        old, new = (scratch(name, len(positions), a.dtype) for name in ("old", "new"))
        times = scratch("times", len(positions), np.uint32)
        if self._dtype in ("BF16", "F16") and len(positions) >= MIN_MERGED_CHANGES:
            n = kernels.histogram.gather_distinct(a, b, positions, scratch("table", 8 << 16, np.uint32), old, new, times)
            old, new, times = old[:n], new[:n], times[:n]
        else:
            kernels.histogram.gather(a, b, positions, old, new, times)
        values = _values(old, self._dtype, "old values"), _values(new, self._dtype, "new values")
        moves, batch = kernels.histogram.Moves(old, new, times, *values), kernels.histogram.BATCH
        distances, sizes = scratch("distances", batch, np.uint64), scratch("moves", batch, np.float64)
        kernels.histogram.count_moves(moves, self._layout, self._tolerances, distances, sizes, numbers, self._bins)

    def histograms(self) -> Histograms:
        """Histograms over all blocks that were counted so far."""
        total = Histograms.empty()
        total.ulps, total.moves, changed = (bins.sum(0) for bins in self._bins)
        if self._dtype in EXPONENT_FIELDS:
            _, mask, bias = EXPONENT_FIELDS[self._dtype]
            for counts, stored in ((total.exponents, self._exponents.sum(0)), (total.changed_exponents, changed)):
                counts[0] = stored[0]
                counts[ZERO_EXPONENT_BIN + 1 - bias : ZERO_EXPONENT_BIN + 1 - bias + mask] = stored[1:]
        return total


def _values(bits: Array, dtype: str, name: str) -> Array:
    """Values of elements that are given as bits; those of bf16, the most common dtype, are put into scratch memory."""
    if dtype == "BF16":
        return np.left_shift(bits, 16, out=scratch(name, len(bits), np.uint32), dtype=np.uint32).view("<f4")
    return values_of(bits, dtype)


@lru_cache
def _largest_within(atol: float, dtype: str) -> float:
    """The largest |d| that is at most ``atol`` once both are rounded to the dtype. As rounding keeps the order, bisection finds it."""
    if dtype not in ("BF16", "F16", "F32"):
        return atol
    low, high = -1, int(np.float64(np.inf).view(np.int64))  # bits
    with np.errstate(over="ignore"):
        rounded = _round(np.array([atol], np.float32), dtype)[0]
        while low < high:
            middle = (low + high + 1) // 2
            inside = _round(np.array([middle]).view(np.float64).astype(np.float32), dtype)[0] <= rounded
            low, high = (middle, high) if inside else (low, middle - 1)
    return float(np.int64(low).view(np.float64)) if low >= 0 else -1.0


def subtract(new: Array, old: Array, dtype: str) -> Array:
    """new - old as torch computes it: rounded to the dtype, for bf16 and fp16 by way of float32.

    Args:
        new, old: values as :func:`values_of` returns them, which is also the form of the result.
        dtype: the tensor's dtype.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return _round(new - old, dtype)


def _round(values: Array, dtype: str) -> Array:
    if dtype == "BF16":
        cast = kernels.casts.cast
        return cast(cast(values.view(np.uint8), "F32", "BF16"), "BF16", "F32").view("<f4")
    return values.astype(np.float16).astype(np.float32) if dtype == "F16" else values
