"""The jobs of a comparison of several updates: a block of one tensor of the base, in all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ckptdiff.analysis.overlap import CountArray
from ckptdiff.analysis.pair_readers import Known
from ckptdiff.analysis.pairs import Pair
from ckptdiff.errors import cut
from ckptdiff.io.parallel import Work

Count = Callable[[Sequence[Pair], int, float], list[CountArray]]
"""Counts a block of a group of pairs, such as :func:`~ckptdiff.analysis.overlap.count_block`."""


@dataclass(frozen=True, slots=True)
class GroupJob:
    """A block of a tensor to count in all updates."""

    group: int
    """Number of its group of pairs."""
    start: int
    """The byte where it begins."""
    nbytes: int
    """Bytes of it in all updates."""


@dataclass(frozen=True, slots=True)
class CountedGroup:
    """What a :class:`GroupJob` gives."""

    counts: list[CountArray]
    known: list[Known | None]
    """What the reader of each update knows of the block."""


def group_jobs(groups: Sequence[Sequence[Pair]]) -> Iterator[GroupJob]:
    """Jobs that count all blocks, in order."""
    for number, group in enumerate(groups):
        for start in group[0].starts:
            yield GroupJob(number, start, len(group) * min(group[0].step, group[0].nbytes - start))


class GroupCounting(Work[GroupJob, CountedGroup]):
    """Counts blocks of groups of pairs."""

    def __init__(self, groups: Sequence[Sequence[Pair]], count: Count, atol: float) -> None:
        self.groups, self.count, self.atol = groups, count, atol

    def __call__(self, job: GroupJob) -> CountedGroup:
        group = self.groups[job.group]
        counts = self.count(group, job.start, self.atol)
        return CountedGroup(counts, [pair.reader.take(job.start) for pair in group])

    def about(self, job: GroupJob) -> str:
        """As of :class:`Work`."""
        return f"tensor {cut(self.groups[job.group][0].name)}, from byte {job.start} on"


def counts_of(groups: Sequence[Sequence[Pair]], results: Iterator[tuple[GroupJob, CountedGroup]]) -> Iterator[list[CountArray]]:
    """The counts of all blocks; tells readers what is known of patches."""
    for job, counted in results:
        for pair, known in zip(groups[job.group], counted.known, strict=True):
            pair.reader.give(job.start, known)
        yield counted.counts
