"""The jobs of a report: the counts of blocks of tensors, and the ranks of matrices."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ckptdiff.analysis.intervals import NullSettings
from ckptdiff.analysis.matrices import counted_lines, matrix_shape
from ckptdiff.analysis.matrix_nulls import MatrixSides, matrix_nulls
from ckptdiff.analysis.matrix_rank import MatrixRank
from ckptdiff.analysis.pair_readers import Known
from ckptdiff.analysis.pairs import Pair
from ckptdiff.analysis.rank import expected_random_rank, spectrum
from ckptdiff.analysis.sparsity import EXPONENT_FIELDS, BlockCounter, BlockCounts, Histograms, Tolerance
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
    with_nulls: bool = False
    """Whether its figures are set beside nulls too."""

    @property
    def nbytes(self) -> int:
        """Bytes of its update in float32."""
        return 4 * self.height * self.width


class RankTaking(Work[RankJob, MatrixRank | None]):
    """Takes the ranks of updates of matrices, and their nulls, with so many threads for each."""

    def __init__(self, pairs: Mapping[int, Pair], device: str | None, threads: int, nulls: NullSettings) -> None:
        self.pairs, self.device, self.threads, self.nulls = pairs, device, threads, nulls

    def about(self, job: RankJob) -> str:
        """As of :class:`Work`."""
        return f"tensor {cut(self.pairs[job.place.pair].name)}: the rank of a matrix of {job.height} x {job.width}"

    def memory(self, job: RankJob) -> int:
        """As of :class:`Work`: beside blocks both sides and the update twice, and three matrices in float64 as large as its product with
        itself; for nulls also the order by size, a shuffled target, and the rank-k approximation of the base in float64, and as many
        singular vectors again."""
        own = WORKER_MEMORY + 4 * job.nbytes + 24 * min(job.height, job.width) ** 2
        return own + (8 * job.nbytes + 24 * min(job.height, job.width) ** 2 if job.with_nulls else 0)

    def __call__(self, job: RankJob) -> MatrixRank | None:
        """The rank; None if the update holds infinities or NaNs, or has singular values beyond float64."""
        pair, part = self.pairs[job.place.pair], job.place.part
        sides = self._read(job)
        update = sides.rounded(sides.change)
        if not np.isfinite([update.max(initial=0.0), update.min(initial=0.0)]).all():
            return None
        with np.errstate(over="ignore"):
            matrix_spectrum = spectrum(update, self.device, self.threads)
        if not math.isfinite(matrix_spectrum.singular_values[0]):
            return None
        density = np.count_nonzero(update) / update.size
        found = MatrixRank(job.index, matrix_spectrum, expected_random_rank(job.height, job.width, density))
        if not (job.with_nulls and density):
            return found
        pieces = (f"{piece.name} {piece.first} {piece.units}" for piece in pair.base.pieces)  # so that renames do not matter
        names = (*pieces, pair.parts[part].index, job.index)
        return replace(found, nulls=matrix_nulls(sides, self.nulls, names, self.device, self.threads))

    def _read(self, job: RankJob) -> MatrixSides:
        """The matrix in base and target."""
        pair, part, size = self.pairs[job.place.pair], job.place.part, job.height * job.width
        sides = [np.empty(size, np.float64 if pair.dtype == "F64" else np.float32) for _ in range(2)]
        shift, mask, _ = EXPONENT_FIELDS[pair.dtype]
        exponents = np.empty(size if job.with_nulls else 0, np.uint8 if mask < 256 else np.uint16)
        begin = (pair.parts[part - 1].stop if part else 0) + job.index * size
        for start in pair.starts_of(begin, begin + size):
            bits = [element_bits(side, pair.dtype) for side in pair.read(start, start + pair.step)]
            pair.reader.take(start)
            first = pair.elements_before(start) - begin
            low, high = max(0, -first), min(len(bits[0]), size - first)
            for side, part_bits in zip(sides, bits, strict=True):
                side[first + low : first + high] = values_of(part_bits[low:high], pair.dtype)
            if job.with_nulls:
                exponents[first + low : first + high] = (bits[0][low:high] >> shift) & mask
        base, target = (side.reshape(job.height, job.width) for side in sides)
        return MatrixSides(base, target, exponents, pair.dtype)


def rank_job(pairs: Sequence[Pair], place: Place, index: int, with_nulls: bool) -> RankJob:
    """The job of a matrix."""
    _, height, width = matrix_shape(pairs[place.pair].parts[place.part].shape)
    return RankJob(place, index, height, width, with_nulls)
