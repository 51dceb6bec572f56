"""Parts of tensors in memory compared and coded by ``sparse`` where they lie, many at once (spec sections 7.4 and 8)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from ckptdiff import kernels
from ckptdiff.checkpoint.adapt import AdaptedBase
from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.codecs import sparse
from ckptdiff.format.digests import BLOCK, block_count
from ckptdiff.format.dtypes import DTYPES, Bytes
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


def encode_apart(parts: Sequence[PartInMemory], noted: Noted | None) -> list[EncodedGroup]:
    """Compare and encode parts of tensors of one dtype.

    Args:
        parts: what to compare.
        noted: told what changes.
    """
    dtype = DTYPES[parts[0].target.dtype]
    found = kernels.changes.compared_apart([part.old for part in parts], [part.new for part in parts], dtype)
    coded, changes, groups = sparse.pack_all(found.changes, dtype), found.changes, list[EncodedGroup]()
    for part, (i, j) in zip(parts, pairwise(accumulate((block_count(len(part.new)) for part in parts), initial=0)), strict=True):
        changed = changes.ends[j] - changes.ends[i]
        if noted is not None and changed:
            noted(part.target, part.first, [(changes.positions[m:n], changes.zigzags[m:n]) for m, n in pairwise(changes.ends[i : j + 1])])
        groups.append(EncodedGroup({"sparse": coded[i:j]}, changed, found.leaves[i:j], found.base_leaves[i:j], len(part.new)))
    return groups
