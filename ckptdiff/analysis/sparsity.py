"""Update sparsity and the size of the moves, in one pass over both checkpoints, block by block.

Mukherjee, Yuan, Hakkani-Tur, Peng, "Reinforcement Learning Finetunes Small Subnetworks in Large Language Models" (arXiv
2505.11711), section 3: sparsity(theta0, theta1) = 1 - ||theta1 - theta0||_0 / n, where two bf16 values count as equal if they
differ by at most 1e-5.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff.dtypes import DTYPES, Bytes, Dtype, cast
from ckptdiff.values import SMALL_FLOATS, element_bits, values_of

Array = npt.NDArray[Any]

ULP_OCTAVES = 64
LOWEST, HIGHEST = -150, 130
"""Range of the binary exponents of |d|; what lies outside counts in the outermost bins."""

EXPONENT = {"F16": (10, 31, 15), "BF16": (7, 255, 127), "F32": (23, 255, 127), "C64": (23, 255, 127), "F64": (52, 2047, 1023)}
EXPONENT |= {name: (m, (1 << e) - 1, bias) for name, (e, m, bias, _) in SMALL_FLOATS.items()}
"""Where a float's exponent stands: bits below it, its mask, its bias."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Numbers of elements. d is target minus base, in float64 (exact for floats of at most 32 bits but for the last rounding).

    Attributes:
        elements: all (a complex number counts as its two parts).
        bit_identical: the same bits.
        equal: the same value: -0.0 equals +0.0. A NaN equals one of the same bits only.
        within_atol: |d| <= atol, or the same bits. The paper's sparsity is within_atol / elements at 1e-5 (section 3).
        within_rtol: |d| <= rtol * |base|, or the same bits (Zhu et al., arXiv 2511.08567: 1e-3).
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

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    @property
    def changed(self) -> int:
        """Elements whose bits differ."""
        return self.elements - self.bit_identical

    @property
    def sparsity(self) -> float:
        """Update sparsity by bits: bit_identical / elements; 1 for no elements."""
        return self.bit_identical / self.elements if self.elements else 1.0


@dataclass(slots=True)
class Tally:
    """What was counted so far, of a tensor or of many."""

    counts: Counts
    ulps: Array
    moves: Array
    exponents: Array
    changed_exponents: Array

    @classmethod
    def empty(cls) -> Tally:
        bins = HIGHEST - LOWEST + 1
        return cls(Counts(), *(np.zeros(n, np.int64) for n in (ULP_OCTAVES, bins, EXPONENTS, EXPONENTS)))

    def add(self, other: Tally) -> None:
        self.counts += other.counts
        for name in ("ulps", "moves", "exponents", "changed_exponents"):
            getattr(self, name)[:] += getattr(other, name)


EXPONENTS, ZERO_EXPONENT = 2400, 1100
"""Bins of base exponents, and the bin of the exponent 0; the first is that of zeros and subnormals."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """|d| <= ``atol``; |d| <= ``rtol`` * |base|."""

    atol: float = 1e-5
    rtol: float = 1e-3


@dataclass(slots=True)
class BlockTally:
    """A block's tally, and how many elements changed in each of its rows (from row ``first_row``) and columns."""

    tally: Tally
    first_row: int
    rows: Array
    columns: Array


def count_block(old: Bytes, new: Bytes, dtype: str, width: int, first: int, tolerance: Tolerance) -> BlockTally:
    """Count one block.

    Args:
        old, new: its bytes in base and target.
        dtype: of both.
        width: elements in a row of the tensor, 0 if it has no rows.
        first: number in the tensor of the block's first element.
        tolerance: when an element counts as unchanged.
    """
    from ckptdiff.analysis import counting
    from ckptdiff.codecs import changes

    if dtype == "C64":
        dtype, width, first = "F32", 2 * width, 2 * first
    a, b = element_bits(old, dtype), element_bits(new, dtype)
    positions = changes.differing(a, b)
    tally = Tally.empty()
    tally.counts = Counts(elements=len(a), **dict.fromkeys(_SAME, len(a) - len(positions)))
    _count_exponents(a, dtype, tally.exponents)
    start = first % width if width else 0
    rows, columns = np.zeros(-(-(start + len(a)) // width) if width else 0, np.int64), np.zeros(width, np.int64)
    if len(positions):
        _count_exponents(a[positions], dtype, tally.changed_exponents)
        _count_changes(a, b, positions, dtype, tolerance, tally)
        if width:
            counting.count_lines(positions, width, start, rows, columns)
    return BlockTally(tally, first // width if width else 0, rows, columns)


_SAME = ("bit_identical", "equal", "within_atol", "within_rtol", "within_atol_rounded")


def _count_exponents(bits: Array, dtype: str, counts: Array) -> None:
    from ckptdiff.analysis import counting

    if dtype not in EXPONENT:
        return
    shift, mask, bias = EXPONENT[dtype]
    found = np.zeros((2, mask + 1), np.int64)
    counting.count_exponents(bits, np.uint64(shift), np.uint64(mask), found)
    by_field = found.sum(0)
    counts[0] += by_field[0]
    counts[ZERO_EXPONENT + 1 - bias : ZERO_EXPONENT + 1 - bias + mask] += by_field[1:]


def _count_changes(a: Array, b: Array, positions: Array, dtype: str, tolerance: Tolerance, tally: Tally) -> None:
    from ckptdiff.analysis import counting

    distances = _ulps(a, b, positions, dtype)
    old, new = values_of(a[positions], dtype), values_of(b[positions], dtype)
    rounded, atol = np.abs(subtract(new, old, dtype)), tolerance.atol
    if dtype in ("BF16", "F16", "F32"):
        atol = float(_round(np.array([atol], np.float32), dtype)[0])
    found = np.zeros(len(fields(Counts)) - 2, np.int64)
    counting.count_changes(old, new, rounded, distances, tolerance.atol, tolerance.rtol, atol, found, tally.ulps, tally.moves)
    equal, within_atol, within_rtol, within_rounded, one_ulp, up, down = (int(n) for n in found)
    tally.counts += Counts(
        equal=equal,
        within_atol=within_atol,
        within_rtol=within_rtol,
        within_atol_rounded=within_rounded,
        one_ulp=one_ulp,
        up=up,
        down=down,
    )


def _ulps(a: Array, b: Array, positions: Array, dtype: str) -> Array:
    """Ulp distances (spec 7.2); elements of less than a byte stand in its highest bits."""
    from ckptdiff.codecs import changes

    row = DTYPES[dtype]
    unused = 8 - row.bits if row.bits < 8 else 0
    if unused:
        a, b, row = a << unused, b << unused, Dtype("", 8, 1, True)
    return changes.distances_of(a, b, positions, row)[0] >> np.uint64(unused)


def subtract(new: Array, old: Array, dtype: str) -> Array:
    """new - old as torch has it: rounded to the dtype, bf16 and fp16 by way of float32. Values of :func:`values_of`, and so the result."""
    with np.errstate(over="ignore", invalid="ignore"):
        return _round(new - old, dtype)


def _round(values: Array, dtype: str) -> Array:
    if dtype == "BF16":
        return cast(cast(values.view(np.uint8), "F32", "BF16"), "BF16", "F32").view("<f4")
    return values.astype(np.float16).astype(np.float32) if dtype == "F16" else values
