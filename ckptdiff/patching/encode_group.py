"""Groups of blocks encoded once they are compared, and many small tensors compared and encoded together (spec sections 7 and 8)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

from ckptdiff import kernels
from ckptdiff.checkpoint.adapt import AdaptedBase
from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.checkpoint.gather import gather
from ckptdiff.codecs import CODECS, context, sparse
from ckptdiff.format.digests import BLOCK, block_count
from ckptdiff.format.dtypes import DTYPES, BlockChange, Changes, Replacement
from ckptdiff.kernels.block_layout import WITHOUT_ROWS, BlockLayout
from ckptdiff.patching.compare_on_host import ComparedGroup

RAW_TRIAL_SHARE = 0.5
"""If ``context`` needs more than this share of the target's bytes, ``raw`` may be smaller and is tried too."""
SPARSE_TRIAL_CHANGES = 32
"""Up to so many changed units in a group, ``sparse`` may be smaller than ``context`` and is tried too."""


Noted: TypeAlias = Callable[[Tensor, int, Sequence[Changes]], None]
"""Told what changes in blocks of a tensor: the tensor, the first unit, and the changes of each block, which are scratch."""


@dataclass(slots=True)
class EncodedGroup:
    """What a job gives: a group of blocks, encoded by the codec that was given, or by those that may be the smallest."""

    blocks: dict[str, list[bytes]]
    """The encoded form of each block, by codec."""
    changed: int
    """Number of units that differ from the base."""
    leaves: list[bytes]
    base_leaves: list[bytes]
    """Leaves (spec 3.2) of the target's blocks, and of those of the adapted base."""
    nbytes: int
    """Bytes of the target tensor that the blocks stand for."""

    def size(self, codec: str) -> int:
        """Bytes that a codec takes."""
        return sum(map(len, self.blocks[codec]))


def encode_group(compared: ComparedGroup, target: Tensor, first: int, codec: str | None) -> EncodedGroup:
    """Encode a group.

    Args:
        compared: the group.
        target: the tensor that it is of.
        first: its first unit there.
        codec: the codec; None: try those that may be the smallest.
    """
    changed, one = sum(len(positions) for positions, _ in compared.changes), codec or "context"
    blocks = {one: _pack(one, compared, target, first)}
    if codec is None and changed:
        for other in further_codecs(changed, sum(map(len, blocks[one])), compared.nbytes):
            blocks[other] = _pack(other, compared, target, first)
    return EncodedGroup(blocks, changed, compared.leaves, compared.base_leaves, compared.nbytes)


def encode_together(
    bases: Sequence[AdaptedBase], targets: Sequence[Tensor], codec: str | None, noted: Noted | None = None
) -> list[EncodedGroup]:
    """Compare and encode whole tensors of one dtype, none of them longer than a block, as :func:`encode_group` does one by one.

    Args:
        bases: what each is compared with.
        targets: the tensors.
        codec: ``context`` or ``sparse``; None: try those that may be the smallest.
        noted: told what changes.
    """
    bounds, dtype = [0, *accumulate(target.nbytes for target in targets)], DTYPES[targets[0].dtype]
    old, new = gather(bases, bounds, "base"), gather(targets, bounds, "target")
    found = kernels.changes.compared_blocks(old, new, bounds, dtype)
    if noted is not None:
        for target, changes in zip(targets, found.changes.blocks, strict=True):
            noted(target, 0, [changes])
    if codec == "sparse":
        blocks = [{"sparse": [coded]} for coded in sparse.pack_all(found.changes, dtype)]
    else:
        packed = context.pack_all(old, bounds, found.changes, dtype, lambda k: BlockLayout(row_width(targets[k])))
        blocks = [{"context": [coded]} for coded in packed]
    facts = zip(blocks, found.changes.counts, found.leaves, found.base_leaves, targets, strict=True)
    groups = [EncodedGroup(coded, changed, [leaf], [before], target.nbytes) for coded, changed, leaf, before, target in facts]
    if codec is None:
        further = [further_codecs(group.changed, group.size("context"), group.nbytes) if group.changed else () for group in groups]
        few = [k for k, others in enumerate(further) if "sparse" in others]
        for k, coded in zip(few, sparse.pack_all(found.changes.only(few), dtype), strict=True):
            groups[k].blocks["sparse"] = [coded]
        for k in (k for k, others in enumerate(further) if "raw" in others):
            groups[k].blocks["raw"] = [CODECS["raw"].pack(None, Replacement(new[bounds[k] : bounds[k + 1]]), dtype, WITHOUT_ROWS)]
    return groups


def further_codecs(changed: int, size: int, nbytes: int) -> Sequence[str]:
    """The codecs that may need less for a group than the ``size`` of ``context``."""
    if changed <= SPARSE_TRIAL_CHANGES:
        return ("sparse",)
    return ("raw",) if size > RAW_TRIAL_SHARE * nbytes else ()


def _pack(codec: str, compared: ComparedGroup, target: Tensor, first: int) -> list[bytes]:
    """The encoded form of each block of a group that begins at unit ``first``."""
    dtype, width = DTYPES[target.dtype], row_width(target)
    encoded = []
    for k, change in enumerate(_block_changes(codec, compared, target, first)):
        base = compared.base[k * BLOCK : (k + 1) * BLOCK] if compared.base is not None else None
        layout = BlockLayout(width, (first + k * BLOCK // dtype.carrier) % width) if width else WITHOUT_ROWS
        encoded.append(CODECS[codec].pack(base, change, dtype, layout))
    return encoded


def _block_changes(codec: str, compared: ComparedGroup, target: Tensor, first: int) -> Iterator[BlockChange]:
    """The change of each block, in the form that the codec takes."""
    if codec != "raw":
        yield from compared.changes
        return
    start = first * DTYPES[target.dtype].carrier
    data = compared.target if compared.target is not None else target.read(start, start + compared.nbytes, "target")
    for k in range(block_count(len(data))):
        yield Replacement(data[k * BLOCK : (k + 1) * BLOCK])


def row_width(tensor: Tensor) -> int:
    """Units in a row of a tensor of two dimensions or more; 0 for other tensors, and where rows are not whole units."""
    if len(tensor.shape) < 2 or tensor.nbytes == 0:
        return 0
    units, rows = tensor.units, math.prod(tensor.shape[:-1])
    return units // rows if units % rows == 0 else 0
