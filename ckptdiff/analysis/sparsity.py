"""Update sparsity and the size of the moves, in one pass over both checkpoints, block by block.

Mukherjee, Yuan, Hakkani-Tur, Peng, "Reinforcement Learning Finetunes Small Subnetworks in Large Language Models" (arXiv
2505.11711), section 3: sparsity(theta0, theta1) = 1 - ||theta1 - theta0||_0 / n, where two bf16 values count as equal if they
differ by at most 1e-5.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff import kernels
from ckptdiff.analysis.values import SMALL_FLOATS, element_bits, values_of
from ckptdiff.format.dtypes import DTYPES, Bytes, cast
from ckptdiff.io.scratch import scratch
from ckptdiff.kernels.bins import HIGHEST, LOWEST, ULP_OCTAVES

Array = npt.NDArray[Any]


EXPONENT = {"F16": (10, 31, 15), "BF16": (7, 255, 127), "F32": (23, 255, 127), "C64": (23, 255, 127), "F64": (52, 2047, 1023)}
EXPONENT |= {name: (m, (1 << e) - 1, bias) for name, (e, m, bias, _) in SMALL_FLOATS.items()}
"""Where a float's exponent stands: bits below it, its mask, its bias."""


MANY = 1 << 15
"""From so many changes in a block on, equal moves of 16-bit floats are gathered before what they are is worked out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Numbers of elements. d is target minus base, in float64 (exact for floats of at most 32 bits but for the last rounding).

    Attributes:
        elements: all (a complex number counts as its two parts).
        bit_identical: the same bits.
        equal: the same value: -0.0 equals +0.0. A NaN equals one of the same bits only.
        within_atol: |d| <= atol, or the same bits. The paper's sparsity is within_atol / elements at 1e-5 (section 3).
        within_rtol: |d| <= rtol * |base| and finite, or the same bits (Zhu et al., arXiv 2511.08567: 1e-3).
        within_atol_rounded: as the paper's released code counts: d is rounded to the tensor's dtype, and so is atol (bf16: 1.0014e-5).
        one_ulp: moved by one ulp (spec 7.2), up or down; between -0.0 and +0.0 is no move.
        up, down: grew, fell.
    """

    elements: int = 0
    bit_identical: int = 0
    equal: int = 0
    within_atol: int = 0
    within_rtol: int = 0
    within_atol_rounded: int = 0
    one_ulp: int = 0
    up: int = 0
    down: int = 0

    @classmethod
    def of(cls, numbers: Iterable[int]) -> Counts:
        """From the numbers in this order."""
        return cls(**dict(zip(NUMBERS, map(int, numbers), strict=True)))

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in NUMBERS})

    @property
    def changed(self) -> int:
        """Elements whose bits differ."""
        return self.elements - self.bit_identical

    @property
    def sparsity(self) -> float:
        """Update sparsity by bits: bit_identical / elements; 1 for no elements."""
        return self.bit_identical / self.elements if self.elements else 1.0


NUMBERS = tuple(f.name for f in fields(Counts))

EXPONENTS, ZERO_EXPONENT = 2400, 1100
"""Bins of base exponents, and the bin of the exponent 0; the first is that of zeros and subnormals."""


@dataclass(slots=True)
class Histograms:
    """Bins of what was counted so far, of a tensor or of many."""

    ulps: Array
    moves: Array
    exponents: Array
    changed_exponents: Array

    @classmethod
    def empty(cls) -> Histograms:
        return cls(*(np.zeros(n, np.int64) for n in (ULP_OCTAVES, HIGHEST - LOWEST + 1, EXPONENTS, EXPONENTS)))

    def add(self, other: Histograms) -> None:
        for name in ("ulps", "moves", "exponents", "changed_exponents"):
            getattr(self, name)[:] += getattr(other, name)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """|d| <= ``atol``; |d| <= ``rtol`` * |base|."""

    atol: float = 1e-5
    rtol: float = 1e-3


@dataclass(slots=True)
class BlockCounts:
    """A block's numbers, as in :class:`Counts`, and how many elements changed in each of its rows, from ``first_row`` on, and columns.

    Columns are those that the block reaches: from ``first_column`` on, behind the last one those from the first.
    """

    numbers: Array
    first_row: int
    rows: Array
    first_column: int
    columns: Array


class BlockCounter:
    """Counts blocks of one dtype, by one thread. What does not go by tensor adds up in bins: two or four rows of each, see ``counting``."""

    def __init__(self, dtype: str, tolerance: Tolerance) -> None:
        self._parts = 2 if dtype == "C64" else 1
        self._dtype = dtype = "F32" if dtype == "C64" else dtype
        row, (shift, mask, _) = DTYPES[dtype], EXPONENT.get(dtype, (0, 0, 0))
        unused = 8 - row.bits if row.bits < 8 else 0  # elements of less than a byte move in its highest bits
        order = kernels.ulps.order_of(row)._replace(is_float=row.is_float or unused > 0)
        self._layout = kernels.histogram.ElementLayout(np.uint64(shift), np.uint64(mask), np.uint64(unused), order)
        self._tolerances = kernels.histogram.Tolerances(float(tolerance.atol), float(tolerance.rtol), _limit(tolerance.atol, dtype))
        self._exponents = np.zeros((4, mask + 1), np.int64)
        self._bins = kernels.histogram.MoveBins(*(np.zeros((2, n), np.int64) for n in (ULP_OCTAVES, HIGHEST - LOWEST + 1, mask + 1)))

    def count(self, old: Bytes, new: Bytes, width: int, first: int) -> BlockCounts:
        """Count one block.

        Args:
            old, new: its bytes in base and target.
            width: elements in a row of the tensor, 0 if it has no rows.
            first: number in the tensor of the block's first element.
        """

        width, first = self._parts * width, self._parts * first
        a, b = element_bits(old, self._dtype), element_bits(new, self._dtype)
        positions = kernels.changes.differing(a, b)
        if self._dtype in EXPONENT:
            kernels.histogram.count_exponents(a, self._layout, self._exponents)
        row, start = divmod(first, width) if width else (0, 0)
        rows = np.zeros(-(-(start + len(a)) // width) if width else 0, np.int64)
        columns = np.zeros(min(width, len(a)), np.int64)
        numbers = np.zeros(len(NUMBERS), np.int64)
        numbers[0], numbers[1 : NUMBERS.index("one_ulp")] = len(a), len(a) - len(positions)
        if len(positions):
            self._count_changes(a, b, positions, numbers)
            if width:
                kernels.histogram.count_lines(positions, width, start, rows, columns)
        return BlockCounts(numbers, row, rows, start, columns)

    def _count_changes(self, a: Array, b: Array, positions: Array, numbers: Array) -> None:

        old, new = (scratch(name, len(positions), a.dtype) for name in ("old", "new"))
        times = scratch("times", len(positions), np.uint32)
        if self._dtype in ("BF16", "F16") and len(positions) >= MANY:
            n = kernels.histogram.gather_distinct(a, b, positions, scratch("table", 8 << 16, np.uint32), old, new, times)
            old, new, times = old[:n], new[:n], times[:n]
        else:
            kernels.histogram.gather(a, b, positions, old, new, times)
        values = _values(old, self._dtype, "old values"), _values(new, self._dtype, "new values")
        moves, batch = kernels.histogram.Moves(old, new, times, *values), kernels.histogram.BATCH
        distances, sizes = scratch("distances", batch, np.uint64), scratch("moves", batch, np.float64)
        kernels.histogram.count_moves(moves, self._layout, self._tolerances, distances, sizes, numbers, self._bins)

    def tally(self) -> Histograms:
        """Bins of all blocks so far."""
        tally = Histograms.empty()
        tally.ulps, tally.moves, changed = (bins.sum(0) for bins in self._bins)
        if self._dtype in EXPONENT:
            _, mask, bias = EXPONENT[self._dtype]
            for counts, found in ((tally.exponents, self._exponents.sum(0)), (tally.changed_exponents, changed)):
                counts[0] = found[0]
                counts[ZERO_EXPONENT + 1 - bias : ZERO_EXPONENT + 1 - bias + mask] = found[1:]
        return tally


def _values(bits: Array, dtype: str, name: str) -> Array:
    """Values, in scratch where they need room and the dtype is a common one."""
    if dtype == "BF16":
        return np.left_shift(bits, 16, out=scratch(name, len(bits), np.uint32), dtype=np.uint32).view("<f4")
    return values_of(bits, dtype)


@lru_cache
def _limit(atol: float, dtype: str) -> float:
    """The largest |d| within ``atol`` once both are rounded to the dtype: by halving, as rounding keeps the order."""
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
    """new - old as torch has it: rounded to the dtype, bf16 and fp16 by way of float32. Values of :func:`values_of`, and so the result."""
    with np.errstate(over="ignore", invalid="ignore"):
        return _round(new - old, dtype)


def _round(values: Array, dtype: str) -> Array:
    if dtype == "BF16":
        return cast(cast(values.view(np.uint8), "F32", "BF16"), "BF16", "F32").view("<f4")
    return values.astype(np.float16).astype(np.float32) if dtype == "F16" else values
