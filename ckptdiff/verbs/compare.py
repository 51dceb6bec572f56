"""``compare`` counts the elements of two checkpoints that are the same, or nearly so."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np

from ckptdiff.analysis.values import distances, element_bits
from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.checkpoint.pairing import check_patterns, pair_all
from ckptdiff.checkpoint.reader import open_checkpoint
from ckptdiff.checkpoint.selection import Selection
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.io.parallel import Progress, default_threads, no_progress, run_ordered

CHUNK_ELEMENTS = 1 << 20
"""Elements that are compared at a time."""
DEFAULT_ATOL = (1e-5, 1e-4)


@dataclass(frozen=True, slots=True)
class TensorComparison:
    """One tensor that both checkpoints have with one dtype and shape; ``scope`` and ``name`` are those of the second checkpoint."""

    scope: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    identical: int
    """Elements that have the same bits."""
    within: tuple[int, ...]
    """For each tolerance the elements with |a - b| at most that, or the same bits."""


@dataclass(frozen=True, slots=True)
class CompareResult:
    """The result of :func:`compare`."""

    atol: tuple[float, ...]
    """The absolute tolerances."""
    tensors: tuple[TensorComparison, ...]
    only_in_a: tuple[str, ...]
    """Names of tensors that only the first checkpoint has."""
    only_in_b: tuple[str, ...]
    """Names of tensors that only the second checkpoint has."""
    mismatched: tuple[str, ...]
    """Names of tensors that both have, but with another dtype or shape."""

    @property
    def elements(self) -> int:
        """Number of elements that were compared."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def identical(self) -> int:
        """Number of elements that have the same bits."""
        return sum(tensor.identical for tensor in self.tensors)

    @property
    def within(self) -> tuple[int, ...]:
        """Number of elements within each tolerance."""
        return tuple(sum(tensor.within[i] for tensor in self.tensors) for i in range(len(self.atol)))

    @property
    def same(self) -> bool:
        """Whether both checkpoints have the same tensors, bit for bit."""
        return self.identical == self.elements and not (self.only_in_a or self.only_in_b or self.mismatched)


def compare(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    atol: Sequence[float] = DEFAULT_ATOL,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    follow_links: bool = False,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> CompareResult:
    """Count the elements of two checkpoints that are bit-identical, and those within absolute tolerances.

    Differences of floats are taken in float64, those of integers exactly. An element that is a NaN on one side only is within no tolerance.
    Tensors are paired by name; the prefixes that wrappers add do not count.

    Args:
        a, b: the checkpoints.
        atol: the absolute tolerances.
        include, exclude, follow_links: choose the files of the checkpoints, as in :func:`ckptdiff.make`.
        threads: number of threads.
        progress: called with what is being done, how much is done, and how much there is.

    Raises:
        CheckpointError: a checkpoint cannot be read, or is not one.
    """
    chosen = Selection(include, exclude, follow_links)
    with open_checkpoint(a, selection=chosen) as left, open_checkpoint(b, selection=chosen) as right:
        check_patterns(left, right, (), chosen.globs)
        paired = pair_all(left, right)
        rows = _count_all(paired.pairs, tuple(atol), threads or default_threads(), progress)
        return CompareResult(tuple(atol), tuple(rows), paired.only_in_base, paired.only_in_target, paired.mismatched)


def _count_all(
    pairs: Sequence[tuple[Tensor, Tensor]], atol: tuple[float, ...], threads: int, progress: Progress
) -> Iterator[TensorComparison]:
    def starts(tensor: Tensor) -> range:
        return range(0, max(tensor.nbytes, 1), CHUNK_ELEMENTS * DTYPES[tensor.dtype].bits // 8)

    def jobs() -> Iterator[Callable[[], list[int]]]:
        for a, b in pairs:
            for start in starts(a):
                yield partial(_count_chunk, a, b, start, start + starts(a).step, atol)

    done, total = 0, sum(a.nbytes for a, _ in pairs)
    with closing(run_ordered(jobs(), threads)) as results:
        for a, b in pairs:
            counts = np.sum([next(results) for _ in starts(a)], axis=0)
            done += a.nbytes
            progress("comparing", done, total)
            elements, identical, *within = (int(count) for count in counts)
            yield TensorComparison(b.scope, b.name, b.dtype, b.shape, elements, identical, tuple(within))


def _count_chunk(a: Tensor, b: Tensor, start: int, stop: int, atol: Sequence[float]) -> list[int]:
    """Elements of one chunk: all, those with the same bits, and those within each tolerance."""
    x, y = (element_bits(tensor.read(start, stop, name), tensor.dtype) for tensor, name in ((a, "base"), (b, "target")))
    differing = np.flatnonzero(x != y)
    d = distances(x[differing], y[differing], a.dtype)
    identical = len(x) - len(differing)
    return [len(x), identical, *(identical + int(np.count_nonzero(d <= tolerance)) for tolerance in atol)]
