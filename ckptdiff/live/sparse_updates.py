"""The updates of tensors in memory that ``sparse`` codes, of many small tensors at once (spec section 7.4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from ckptdiff import codecs
from ckptdiff.codecs.planes import BlockError
from ckptdiff.format.digests import BLOCK, block_count
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.io.parallel import batches
from ckptdiff.live.updates import BYTES_PER_UPDATE_JOB, RangeUpdate, range_update
from ckptdiff.patching.build import block_error, check_changed
from ckptdiff.patching.recipes import PatchedTensor

BYTES_AT_ONCE = 64 * BLOCK
RANGES_AT_ONCE = 256
"""Bytes of tensors that are decoded by one call, and in how many ranges at most."""


class _Range(NamedTuple):
    """A range of a tensor that an update is of."""

    step: PatchedTensor
    start: int
    stop: int
    """In bytes of the tensor."""

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


def unpack_sparse(steps: Iterable[PatchedTensor]) -> Iterator[list[RangeUpdate | None]]:
    """The updates of each tensor, range by range; None for a range without changes.

    Raises:
        FormatError: a block cannot be decoded, or an entry changes another number of units than it says.
    """
    updates, changed = list[RangeUpdate | None](), 0
    for _, alike in groupby(_ranges(steps), key=lambda part: part.step.entry.dtype):
        for batch in batches(alike, BYTES_AT_ONCE, RANGES_AT_ONCE):
            for part, (update, count) in zip(batch, _unpack(batch), strict=True):
                updates.append(update)
                changed += count
                if part.stop == part.step.nbytes:
                    check_changed(part.step, changed)
                    yield updates
                    updates, changed = [], 0


def _ranges(steps: Iterable[PatchedTensor]) -> Iterator[_Range]:
    for step in steps:
        for start in range(0, step.nbytes, BYTES_PER_UPDATE_JOB):
            yield _Range(step, start, min(start + BYTES_PER_UPDATE_JOB, step.nbytes))


def _unpack(ranges: Sequence[_Range]) -> Iterator[tuple[RangeUpdate | None, int]]:
    """The updates of ranges of tensors of one dtype, and how many units each changes."""
    dtype, coded, sizes, offsets = DTYPES[ranges[0].step.entry.dtype], list[memoryview](), list[int](), list[int]()
    for step, start, stop in ranges:
        first = start // BLOCK
        coded += step.file.payloads.read_blocks(step.entry, first, first + block_count(stop - start))
        for at in range(0, stop - start, BLOCK):
            sizes.append(min(BLOCK, stop - start - at))
            offsets.append(at // dtype.carrier)
    try:
        (positions, zigzags), counts = codecs.sparse.unpack_all(coded, sizes, offsets, dtype)
    except BlockError as error:
        raise block_error(*_owner(ranges, error.block), error) from None
    block = done = 0
    for part in ranges:
        following = block + block_count(part.nbytes)
        end = done + sum(counts[block:following])
        yield range_update(part.start, part.stop, positions[done:end], zigzags[done:end], dtype), end - done
        block, done = following, end


def _owner(ranges: Sequence[_Range], block: int) -> tuple[PatchedTensor, int]:
    """The tensor that a block of all ranges belongs to, and the block's number in it."""
    for part in ranges:
        if block < block_count(part.nbytes):
            return part.step, part.start // BLOCK + block
        block -= block_count(part.nbytes)
    raise AssertionError("there is no such block")
