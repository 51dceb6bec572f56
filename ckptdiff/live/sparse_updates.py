"""The updates of tensors in memory that ``sparse`` codes, of many small tensors at once (spec section 7.4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from ckptdiff import codecs
from ckptdiff.codecs.planes import BlockError
from ckptdiff.format.digests import BLOCK, block_count
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.live.updates import BYTES_PER_UPDATE_JOB, RangeUpdate, range_update
from ckptdiff.patching.build import block_error, check_changed
from ckptdiff.patching.recipes import PatchedTensor

BLOCKS_AT_ONCE = 64
"""Blocks that are decoded by one call, or those of one tensor."""


def unpack_sparse(steps: Sequence[PatchedTensor]) -> Iterator[list[RangeUpdate | None]]:
    """The updates of each tensor, range by range; None for a range without changes.

    Raises:
        FormatError: a block cannot be decoded, or an entry changes another number of units than it says.
    """
    for _, alike in groupby(steps, key=lambda step: step.entry.dtype):
        batch, blocks = list[PatchedTensor](), 0
        for step in alike:
            batch.append(step)
            blocks += block_count(step.nbytes)
            if blocks >= BLOCKS_AT_ONCE:
                yield from _unpack(batch)
                batch, blocks = [], 0
        yield from _unpack(batch)


def _unpack(steps: Sequence[PatchedTensor]) -> Iterator[list[RangeUpdate | None]]:
    """The updates of tensors of one dtype."""
    if not steps:
        return
    dtype, coded, sizes, offsets = DTYPES[steps[0].entry.dtype], list[memoryview](), list[int](), list[int]()
    for step in steps:
        coded += step.file.read_blocks(step.entry, 0, block_count(step.nbytes))
        for start in range(0, step.nbytes, BLOCK):
            sizes.append(min(BLOCK, step.nbytes - start))
            offsets.append(start % BYTES_PER_UPDATE_JOB // dtype.carrier)
    try:
        (positions, zigzags), counts = codecs.sparse.unpack_all(coded, sizes, offsets, dtype)
    except BlockError as error:
        step, block = _owner(steps, error.block)
        raise block_error(step, block, error) from None
    block = done = 0
    for step in steps:
        parts, first = list[RangeUpdate | None](), done
        for start in range(0, step.nbytes, BYTES_PER_UPDATE_JOB):
            stop = min(start + BYTES_PER_UPDATE_JOB, step.nbytes)
            following = block + block_count(stop - start)
            end = done + sum(counts[block:following])
            parts.append(range_update(start, stop, positions[done:end], zigzags[done:end], dtype))
            block, done = following, end
        check_changed(step, done - first)
        yield parts


def _owner(steps: Sequence[PatchedTensor], block: int) -> tuple[PatchedTensor, int]:
    """The tensor that a block of all of them belongs to, and the block's number in it."""
    for step in steps:
        if block < block_count(step.nbytes):
            return step, block
        block -= block_count(step.nbytes)
    raise AssertionError("there is no such block")
