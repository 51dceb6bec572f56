"""``compare`` counts the elements of two checkpoints that are the same, or nearly so."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np

from ckptdiff.analysis.pairs import Pair, check_common, open_source
from ckptdiff.analysis.values import distances, element_bits
from ckptdiff.checkpoint.contents import Checkpoint, Tensor
from ckptdiff.checkpoint.recognition import is_patch, patch_error
from ckptdiff.checkpoint.renames import Rename, check_globs
from ckptdiff.checkpoint.selection import Selection
from ckptdiff.format.digests import BLOCK
from ckptdiff.io.parallel import Progress, default_threads, no_progress, run_ordered

DEFAULT_ATOL = (1e-5, 1e-4)


@dataclass(frozen=True, slots=True)
class TensorComparison:
    """A tensor of the second checkpoint, as far as the first one has it, in any layout; values are compared after a cast (spec 8)."""

    scope: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    identical: int
    """Elements that have the same bits."""
    within: tuple[int, ...]
    """For each tolerance the elements with |a - b| at most that, or the same bits."""
    others: tuple[str, ...] = ()
    """Tensors of the first checkpoint that it was compared with, where that is not simply the one of its own name."""
    other_dtype: str | None = None
    """Their dtype, where that is not the tensor's."""
    same: bool = False
    """Whether the first checkpoint has this tensor, of this name, dtype and shape, bit for bit."""


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
    """Names of tensors that both have, but with a dtype or shape that cannot be compared."""
    same_files: bool
    """Whether the weight files have the same bytes."""

    @property
    def differing(self) -> int:
        """Tensors that only one of the two has in that form: of that name, dtype, shape and content."""
        return sum(not tensor.same for tensor in self.tensors) + len((*self.only_in_a, *self.only_in_b, *self.mismatched))

    @property
    def renamed(self) -> bool:
        """Whether both hold the same bits, but for names, dtypes and shapes."""
        return bool(self.tensors) and self.identical == self.elements and not (self.only_in_a or self.only_in_b or self.mismatched)

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
        return not self.differing


def compare(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    atol: Sequence[float] = DEFAULT_ATOL,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    follow_links: bool = False,
    rename: Sequence[str] = (),
    threads: int | None = None,
    progress: Progress = no_progress,
) -> CompareResult:
    """Count the elements of two checkpoints that are bit-identical, and those within absolute tolerances.

    Differences of floats are taken in float64, those of integers exactly. An element that is a NaN on one side only is within no tolerance.
    Tensors are paired as in :func:`ckptdiff.make`, and so compared in whatever names, dtypes and layouts the two have them.

    Args:
        a, b: the checkpoints.
        atol: the absolute tolerances.
        include, exclude, follow_links, rename: choose the files and tensors of the checkpoints, as in :func:`ckptdiff.make`.
        threads: number of threads.
        progress: called with what is being done, how much is done, and how much there is.

    Raises:
        CheckpointError: a checkpoint cannot be read, or is not one, or the two have nothing in common.
    """
    chosen, rules = Selection(include, exclude, follow_links), [Rename.parse(text) for text in rename]
    for path in (a, b):
        if is_patch(path):
            raise patch_error(path)
    with open_source(a, b, selection=chosen, renames=rules) as source:
        left, right = source.checkpoints
        check_globs(chosen.globs, left, right)
        check_common(source)
        rows = tuple(_count_all(source.pairs, tuple(atol), threads or default_threads(), progress))
        same = all(row.same for row in rows) and _same_files(left, right)
        return CompareResult(tuple(atol), rows, (*source.removed, *source.unused), source.added, source.unpaired, same)


def _same_files(left: Checkpoint, right: Checkpoint) -> bool:
    """Whether two checkpoints of the same tensors have the same weight files: the same headers under the same paths."""
    files = [{"" if side.is_file else file.path: file.header.raw for file in side.weights} for side in (left, right)]
    return files[0] == files[1] and all(_same_bytes(left.tensor(key), tensor) for key, tensor in right.uncounted.items())


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one size hold the same bytes."""
    return all(np.array_equal(a.read(k, k + BLOCK, "base"), b.read(k, k + BLOCK, "target")) for k in range(0, b.nbytes, BLOCK))


def _count_all(pairs: Sequence[Pair], atol: tuple[float, ...], threads: int, progress: Progress) -> Iterator[TensorComparison]:
    jobs = (partial(_count_chunk, pair, start, atol) for pair in pairs for start in pair.starts)
    done, total = 0, sum(pair.nbytes for pair in pairs)
    with closing(run_ordered(jobs, threads)) as results:
        for pair in pairs:
            counts = np.sum([next(results) for _ in pair.starts], axis=0)
            done += pair.nbytes
            progress("comparing", done, total)
            elements, identical, *within = (int(count) for count in counts)
            olds = [(old.name, old.dtype, old.shape) for old in pair.base.tensors.values()]
            same = olds == [(pair.name, pair.dtype, pair.target_shape)] and elements == identical
            others = () if set(pair.base.tensors) <= {pair.name} else tuple(pair.base.tensors)
            other_dtype = pair.base.base_dtype if pair.base.base_dtype != pair.dtype else None
            counted = elements, identical, tuple(within)
            yield TensorComparison(pair.scope, pair.name, pair.dtype, pair.shape, *counted, others, other_dtype, same)


def _count_chunk(pair: Pair, start: int, atol: Sequence[float]) -> list[int]:
    """Elements of one chunk: all, those with the same bits, and those within each tolerance."""
    x, y = (element_bits(side, pair.dtype) for side in pair.read(start, start + pair.step))
    differing = np.flatnonzero(x != y)
    d = distances(x[differing], y[differing], pair.dtype)
    identical = len(x) - len(differing)
    return [len(x), identical, *(identical + int(np.count_nonzero(d <= tolerance)) for tolerance in atol)]
