"""Parts of tensors in memory compared and coded by ``sparse`` where they lie, many at once (spec sections 7.4 and 8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, TypeAlias

import numpy as np

from ckptdiff import kernels
from ckptdiff.checkpoint.adapt import AdaptedBase
from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.codecs import sparse
from ckptdiff.format.digests import BLOCK, block_count
from ckptdiff.format.dtypes import DTYPES, Bytes, ManyChanges
from ckptdiff.patching.encode_group import EncodedGroup, Noted
from ckptdiff.patching.encode_plan import EncodeJob

BYTES_TOGETHER = 8 * BLOCK
"""Bytes of a target that are compared by one call: there is scratch memory for a change of each unit."""


class PartInMemory(NamedTuple):
    """Whole blocks of a target tensor on the host, of which the last may be short, and what they are compared with."""

    target: Tensor
    first: int
    """The first unit."""
    old: Bytes
    new: Bytes
    """The memory of the base and of the target."""


def part_in_memory(base: AdaptedBase, target: Tensor, job: EncodeJob) -> PartInMemory | None:
    """What a job compares, where that lies in the host's memory on both sides; else None."""
    old, new = base.whole.memory if base.whole is not None else None, target.memory
    if not (isinstance(old, np.ndarray) and isinstance(new, np.ndarray)):
        return None
    if job.nbytes == len(new):
        return PartInMemory(target, 0, old, new)
    start = job.first * DTYPES[target.dtype].carrier
    return PartInMemory(target, job.first, old[start : start + job.nbytes], new[start : start + job.nbytes])


NotedParts: TypeAlias = Callable[[Sequence[PartInMemory], ManyChanges], None]
"""Told what changes in the blocks of some parts, all of one dtype; the changes are scratch."""


def by_parts(noted: Noted) -> NotedParts:
    """Tells of one part after the other."""

    def note_all(parts: Sequence[PartInMemory], changes: ManyChanges) -> None:
        blocks = changes.blocks
        for part, (i, j) in zip(parts, _block_ranges(parts), strict=True):
            if changes.ends[i] < changes.ends[j]:
                noted(part.target, part.first, blocks[i:j])

    return note_all


def _block_ranges(parts: Sequence[PartInMemory]) -> Iterator[tuple[int, int]]:
    """The number of the first block of each part, and that of the one behind its last."""
    return pairwise(accumulate((block_count(len(part.new)) for part in parts), initial=0))


def encode_apart(parts: Sequence[PartInMemory], noted: NotedParts | None) -> list[EncodedGroup]:
    """Compare and encode parts of tensors of one dtype.

    Args:
        parts: what to compare.
        noted: told what changes.
    """
    dtype = DTYPES[parts[0].target.dtype]
    found = kernels.changes.compared_apart([part.old for part in parts], [part.new for part in parts], dtype)
    if noted is not None:
        noted(parts, found.changes)
    coded, ends, groups = sparse.pack_all(found.changes, dtype), found.changes.ends, list[EncodedGroup]()
    for part, (i, j) in zip(parts, _block_ranges(parts), strict=True):
        groups.append(EncodedGroup({"sparse": coded[i:j]}, ends[j] - ends[i], found.leaves[i:j], found.base_leaves[i:j], len(part.new)))
    return groups
