"""How far the sizes of the base's weights explain where an update lies, and what the places tell of its size.

P(changed | exponent) is the share of the weights with one binary exponent that changed. In a run that keeps its weights in float32 and
saves them in BF16, from a base in BF16, a weight changes if its update exceeds half an ulp, which is 2^(exponent - 8) in BF16 and
2^(exponent - 11) in F16; so that P(changed | exponent) is the survival function of |update| there, if updates do not depend on the weights'
sizes. Whether they do is told by the |d| of the weights that changed, most of which have finer steps than that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff.analysis.sparsity import EXPONENT_FIELDS

Array = npt.NDArray[Any]

MOST_DISAGREEMENT = 0.1
"""Largest difference between the shares of |d| that are inferred and found, over the share that changed, up to which a distribution of
updates is inferred."""
QUANTILE_SHARES = (0.5, 0.1, 0.01)
"""Shares of the weights whose update exceeds the sizes that are reported."""


@dataclass(frozen=True, slots=True)
class ExponentCounts:
    """Elements of a tensor by the binary exponent of the base's value."""

    zeros: tuple[int, int]
    """Zeros and subnormals, and how many of them changed."""
    first: int
    """The least exponent e of the others, which lie in [2^e, 2^(e + 1)); 0 where there are none."""
    elements: tuple[int, ...]
    """Elements of each exponent from ``first`` on."""
    changed: tuple[int, ...]
    """How many of them changed."""

    @property
    def explained(self) -> float | None:
        """Share of "changed or not" that these exponents explain, as :func:`explained` has it."""
        return explained((n, c) for _, n, c in self.rows())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        lists = {"elements": list(self.elements), "changed": list(self.changed)}
        return {"explained": self.explained, "zeros": list(self.zeros), "first": self.first} | lists

    def rows(self) -> Iterator[tuple[int | None, int, int]]:
        """Exponent (None for zeros and subnormals), elements and changed ones, where there are any."""
        if self.zeros[0]:
            yield (None, *self.zeros)
        for k, (n, c) in enumerate(zip(self.elements, self.changed, strict=True)):
            if n:
                yield self.first + k, n, c


def exponent_counts(elements: Array, changed: Array, dtype: str) -> ExponentCounts:
    """Counts by exponent field, int64 each, as a record."""
    bias, there = EXPONENT_FIELDS[dtype][2], np.flatnonzero(elements[1:])
    low, high = (int(there[0]) + 1, int(there[-1]) + 2) if len(there) else (bias, bias)
    zeros = int(elements[0]), int(changed[0])
    return ExponentCounts(zeros, low - bias, *(tuple(counts[low:high].tolist()) for counts in (elements, changed)))


Bins = dict[tuple[str, int | None], tuple[int, int]]
"""Elements and changed ones by dtype and exponent."""


def pooled(tensors: Iterable[tuple[str, ExponentCounts | None]]) -> Bins:
    """The counts of tensors, given by dtype, added up; those that have none, as they are not of floats, are left out."""
    sums: Bins = {}
    for dtype, counts in tensors:
        for exponent, n, c in counts.rows() if counts is not None else ():
            before = sums.get((dtype, exponent), (0, 0))
            sums[dtype, exponent] = before[0] + n, before[1] + c
    return sums


def explained(bins: Iterable[tuple[int, int]]) -> float | None:
    """Share of the variance of "changed or not" that lies between bins: R^2 = sum n (p_bin - p)^2 / (n p (1 - p)), from 0 to 1.

    Args:
        bins: elements and changed ones of each.

    Returns:
        None where nothing or all changed.
    """
    rows = [row for row in bins if row[0]]
    n, c = (sum(counts) for counts in zip(*rows, strict=True)) if rows else (0, 0)
    if not 0 < c < n:
        return None
    between = math.fsum((b * n - a * c) ** 2 / a for a, b in rows) / n  # n times the sum of a (b / a - c / n)^2
    return between / (c * (n - c)) if between < c * (n - c) else 1.0


def densities_explained(tensors: Sequence[tuple[str, ExponentCounts | None]]) -> float | None:
    """R^2 of the tensors' densities as all tensors' P(changed | dtype, exponent) predicts them: 1 - sum (p - q)^2 / sum (p - mean)^2.

    Every tensor weighs the same. It is below 0 where the mean density predicts better.

    Args:
        tensors: dtype and counts of each.

    Returns:
        None for less than two tensors, or where all have one density.
    """
    bins, found, predicted = pooled(tensors), list[float](), list[float]()
    for dtype, counts in tensors:
        rows = list(counts.rows()) if counts is not None else []
        if rows:
            n = sum(row[1] for row in rows)
            found.append(sum(row[2] for row in rows) / n)
            predicted.append(math.fsum(a * bins[dtype, e][1] / bins[dtype, e][0] for e, a, _ in rows) / n)
    mean = math.fsum(found) / len(found) if found else 0.0
    spread = math.fsum((p - mean) ** 2 for p in found)
    return 1 - math.fsum((p - q) ** 2 for p, q in zip(found, predicted, strict=True)) / spread if spread and len(found) > 1 else None


@dataclass(frozen=True, slots=True)
class UpdateSizes:
    """What places tell of the size of the updates, of a run that kept its weights in float32."""

    above: tuple[tuple[float, float], ...]
    """A size, and the share of the weights whose |update| exceeds it: from the smallest."""
    disagreement: float
    """Largest difference between the inferred and found shares of weights with |d| above a size, over the share that changed."""

    @property
    def holds(self) -> bool:
        """Whether the weights that changed moved as far as the places say, so that the run is like one with float32 weights."""
        return self.disagreement <= MOST_DISAGREEMENT

    def exceeded_by(self, share: float) -> float | None:
        """The size that this share of the updates exceeds, interpolated in its logarithm; None outside what is known."""
        for (low, more), (high, less) in zip(self.above, self.above[1:], strict=False):
            if more >= share >= less and more > less and low:
                return _stable(low * (high / low) ** ((more - share) / (more - less)))
        return None


HALF_ULPS = {"BF16": 8, "F16": 11}
"""Half an ulp of a number with exponent e is 2^(e - this)."""


def infer_updates(bins: Bins, moves: Iterable[tuple[float, int]]) -> UpdateSizes | None:
    """Infer the sizes of updates from P(changed | exponent), and compare them with the |d| that were found.

    Args:
        bins: of all tensors.
        moves: lower end of each bin of |d|, a power of two, and the number of changed elements in it.

    Returns:
        None where a changed element is of another dtype than BF16 and F16, or less than three exponents have elements.
    """
    counts, zeros = dict[int, tuple[int, int]](), (0, 0)
    for (dtype, exponent), (n, c) in bins.items():
        if dtype not in HALF_ULPS:
            if c:
                return None
        elif exponent is None:
            zeros = zeros[0] + n, zeros[1] + c
        else:
            before = counts.get(exponent - HALF_ULPS[dtype], (0, 0))
            counts[exponent - HALF_ULPS[dtype]] = before[0] + n, before[1] + c
    if len(counts) < 3 or not any(c for _, c in counts.values()):
        return None
    sizes = sorted(counts)
    survival = _falling([counts[size] for size in sizes])
    above = tuple((2.0**size, share) for size, share in zip(sizes, survival, strict=True))
    return UpdateSizes(above, _disagreement(counts, zeros, survival, moves))


def _falling(counts: Sequence[tuple[int, int]]) -> list[float]:
    """Shares c / n that fall, by pooling neighbours that do not (Ayer et al. 1955, "An empirical distribution function for sampling with
    incomplete information")."""
    blocks: list[tuple[int, int, int]] = []
    for n, c in counts:
        blocks.append((n, c, 1))
        while len(blocks) > 1 and blocks[-1][1] * blocks[-2][0] > blocks[-2][1] * blocks[-1][0]:
            (n2, c2, k2), (n1, c1, k1) = blocks.pop(), blocks.pop()
            blocks.append((n1 + n2, c1 + c2, k1 + k2))
    return [c / n for n, c, k in blocks for _ in range(k)]


def _disagreement(
    counts: dict[int, tuple[int, int]], zeros: tuple[int, int], survival: Sequence[float], moves: Iterable[tuple[float, int]]
) -> float:
    """See :attr:`UpdateSizes.disagreement`.

    A weight of half ulp h moves by a multiple of 2 h, so by x or more where its update exceeds x - h, and moves at all where it exceeds h.
    """
    sizes, found = sorted(counts), {round(math.log2(low)): n for low, n in moves if low > 0}
    places = np.array(sizes, np.float64)
    changed, most = zeros[1] + sum(c for _, c in counts.values()), 0.0
    for x in sizes:
        wanted = np.maximum(places, x + np.log2(np.maximum(1 - 2.0 ** (places - x), 2.0**-60)))
        shares = np.interp(wanted, places, survival).tolist()
        expected = (
            math.fsum(counts[size][0] * share for size, share in zip(sizes, shares, strict=True)) + zeros[0] * survival[sizes.index(x)]
        )
        above = sum(n for k, n in found.items() if k >= x)
        most = max(most, abs(expected - above))
    return _stable(most / changed)


def _stable(value: float) -> float:
    """A number in four digits, which do not depend on the C library's logarithms and powers."""
    return float(f"{value:.4g}")
