"""The jobs of a report: the counts of blocks of tensors, and the ranks of matrices."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ckptdiff.analysis.matrices import counted_lines, matrix_shape
from ckptdiff.analysis.pair_readers import Known
from ckptdiff.analysis.pairs import Pair
from ckptdiff.analysis.rank import expected_random_rank, spectrum
from ckptdiff.analysis.report_model import MatrixRank
from ckptdiff.analysis.sparsity import BlockCounter, BlockCounts, Histograms, Tolerance, subtract
from ckptdiff.analysis.values import element_bits, values_of
from ckptdiff.errors import cut
from ckptdiff.format.dtypes import DTYPES, Bytes
from ckptdiff.io.parallel import WORKER_MEMORY, Work

JOB_BYTES = 1 << 22
"""Bytes of the base that a job counts, or up to a block more."""


@dataclass(frozen=True, slots=True)
class CountJob:
    """Blocks to count, all of one dtype."""

    blocks: tuple[tuple[int, int], ...]
    """Of each the number of its pair, and the byte where it begins."""
    nbytes: int


@dataclass(frozen=True, slots=True)
class CountedBlocks:
    """What a :class:`CountJob` gives."""

    blocks: list[dict[int, BlockCounts]]
    """The counts of each block, by part of its pair."""
    known: list[Known | None]
    """What its reader knows of each block."""
    histograms: Histograms
    """Over all of them."""


def count_jobs(pairs: Sequence[Pair]) -> Iterator[CountJob]:
    """Jobs that count all blocks of pairs, in order: so many at once that handing jobs to threads takes no time."""
    group: list[tuple[int, int]] = []
    size = 0
    for number, pair in enumerate(pairs):
        for start in pair.starts:
            if group and (size >= JOB_BYTES or pair.dtype != pairs[group[0][0]].dtype):
                yield CountJob(tuple(group), size)
                group, size = [], 0
            group.append((number, start))
            size += min(pair.step, pair.nbytes - start)
    if group:
        yield CountJob(tuple(group), size)


class BlockCounting(Work[CountJob, CountedBlocks]):
    """Counts blocks of pairs."""

    def __init__(self, pairs: Sequence[Pair], tolerance: Tolerance) -> None:
        self.pairs, self.tolerance = pairs, tolerance

    def __call__(self, job: CountJob) -> CountedBlocks:
        counter = BlockCounter(self.pairs[job.blocks[0][0]].dtype, self.tolerance)
        counts, known = list[dict[int, BlockCounts]](), list[Known | None]()
        for number, start in job.blocks:
            pair = self.pairs[number]
            old, new = pair.read(start, start + pair.step)
            counts.append(_count_parts(pair, counter, old, new, pair.elements_before(start)))
            known.append(pair.reader.take(start))
        return CountedBlocks(counts, known, counter.histograms())

    def about(self, job: CountJob) -> str:
        """As of :class:`Work`."""
        number, start = job.blocks[0]
        return f"tensor {cut(self.pairs[number].name)}, from byte {start} on"


def _count_parts(pair: Pair, counter: BlockCounter, old: Bytes, new: Bytes, first: int) -> dict[int, BlockCounts]:
    """The counts of a block by part of the pair; ``first``: the element with which the block begins."""
    bits, counted = DTYPES[pair.dtype].bits, dict[int, BlockCounts]()
    k, at, stop = bisect_right(pair.parts, first, key=lambda part: part.stop), first, first + 8 * len(new) // bits
    for number in range(min(k, len(pair.parts) - 1), len(pair.parts)):
        part, begin = pair.parts[number], pair.parts[number - 1].stop if number else 0
        end = min(part.stop, stop)
        low, high = ((element - first) * bits // 8 for element in (at, end))
        counted[number] = counter.count(old[low:high], new[low:high], counted_lines(part.shape)[1], at - begin)
        at = end
        if at >= stop:
            break
    return counted


# --- rank ---


class Place(NamedTuple):
    """Where the matrices of a report's tensor are."""

    pair: int
    """Number of its pair."""
    part: int
    """Number of its part there."""


@dataclass(frozen=True, slots=True)
class RankJob:
    """A matrix of which the rank is taken."""

    place: Place
    index: int
    """Number of the matrix in the part."""
    height: int
    width: int

    @property
    def nbytes(self) -> int:
        """Bytes of its update in float32."""
        return 4 * self.height * self.width


class RankTaking(Work[RankJob, MatrixRank | None]):
    """Takes the ranks of updates of matrices, with so many threads for each."""

    def __init__(self, pairs: Mapping[int, Pair], device: str | None, threads: int) -> None:
        self.pairs, self.device, self.threads = pairs, device, threads

    def about(self, job: RankJob) -> str:
        """As of :class:`Work`."""
        return f"tensor {cut(self.pairs[job.place.pair].name)}: the rank of a matrix of {job.height} x {job.width}"

    def memory(self, job: RankJob) -> int:
        """As of :class:`Work`: beside blocks the update twice, and three matrices in float64 as large as its product with itself."""
        return WORKER_MEMORY + 2 * job.nbytes + 24 * min(job.height, job.width) ** 2

    def __call__(self, job: RankJob) -> MatrixRank | None:
        """The rank; None if the update holds infinities or NaNs, or has singular values beyond float64."""
        pair, part = self.pairs[job.place.pair], job.place.part
        update = np.empty(job.height * job.width, np.float64 if pair.dtype == "F64" else np.float32)
        begin, changed = (pair.parts[part - 1].stop if part else 0) + job.index * len(update), 0
        for start in pair.starts_of(begin, begin + len(update)):
            old, new = (values_of(element_bits(side, pair.dtype), pair.dtype) for side in pair.read(start, start + pair.step))
            pair.reader.take(start)
            first = pair.elements_before(start) - begin
            low, high = max(0, -first), min(len(old), len(update) - first)
            difference = subtract(new[low:high], old[low:high], pair.dtype)
            update[first + low : first + high] = difference
            changed += int(np.count_nonzero(difference))
        if not np.isfinite([update.max(initial=0.0), update.min(initial=0.0)]).all():
            return None
        with np.errstate(over="ignore"):
            matrix_spectrum = spectrum(update.reshape(job.height, job.width), self.device, self.threads)
        if not math.isfinite(matrix_spectrum.singular_values[0]):
            return None
        return MatrixRank(job.index, matrix_spectrum, expected_random_rank(job.height, job.width, changed / len(update)))


def rank_job(pairs: Sequence[Pair], place: Place, index: int) -> RankJob:
    """The job of a matrix."""
    _, height, width = matrix_shape(pairs[place.pair].parts[place.part].shape)
    return RankJob(place, index, height, width)
