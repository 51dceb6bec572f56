"""Groups of blocks encoded against their base, and the choice of a codec (spec sections 7 and 8)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ckptdiff.checkpoint.adapt import AdaptedBase
from ckptdiff.checkpoint.contents import Checkpoint, Tensor, TensorKey
from ckptdiff.codecs import CODECS
from ckptdiff.errors import cut
from ckptdiff.format.digests import BLOCK, block_count
from ckptdiff.format.dtypes import DTYPES, BlockChange, Replacement
from ckptdiff.io.parallel import Work
from ckptdiff.kernels.block_layout import WITHOUT_ROWS, BlockLayout
from ckptdiff.patching.compare_on_host import ComparedGroup, Comparer, compare_on_host
from ckptdiff.patching.encode_plan import EncodeJob, JobBase

RAW_TRIAL_SHARE = 0.5
"""If ``context`` needs more than this share of the target's bytes, ``raw`` may be smaller and is tried too."""
CONTEXT_SHARE = 0.4
"""Up to this share of changed units, ``context`` needs about :data:`RAW_TRIAL_SHARE` of the bytes at most: a long tensor is coded by it."""
SPARSE_TRIAL_CHANGES = 32
"""Up to so many changed units in a group, ``sparse`` may be smaller than ``context`` and is tried too."""
DEPENDENCE_SHARE = 0.98
"""If a tensor's changes take this share of what ``raw`` needs, or more, its base is of no use."""
KEPT_BASES = 64
"""Bases that an encoder keeps."""


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


class GroupEncoder(Work[EncodeJob, EncodedGroup]):
    """Encodes groups of blocks, given the open checkpoints that the jobs name tensors of."""

    def __init__(self, base: Checkpoint, target: Checkpoint, compare: Comparer = compare_on_host) -> None:
        self.base, self.target, self.compare, self._bases = base, target, compare, dict[TensorKey, AdaptedBase]()

    def __reduce__(self) -> tuple[Any, ...]:
        return GroupEncoder, (self.base, self.target, self.compare)

    def about(self, job: EncodeJob) -> str:
        """As of :class:`Work`."""
        return f"{self.target.path}: tensor {cut(job.target.name)}, from unit {job.first} on"

    def tensors(self, job: EncodeJob) -> tuple[AdaptedBase | None, Tensor]:
        """What a job compares: the base, if there is one, and the target tensor."""
        target = self.target.tensor(job.target)
        return self._adapted(job.base, target) if job.base is not None else None, target

    def _adapted(self, base: JobBase, target: Tensor) -> AdaptedBase:
        """The base of a tensor; that of the last few is kept, as it may have very many pieces."""
        known = self._bases.get(target.key)
        if known is None:
            tensors = self.base.scopes[base.scope]
            named = {piece.name: tensors[piece.name] for piece in base.pieces if piece.name is not None}
            known = AdaptedBase(base.pieces, named, base.dtype, target.dtype, target.units)
            if len(self._bases) > KEPT_BASES:
                self._bases.clear()
            self._bases[target.key] = known
        return known

    def __call__(self, job: EncodeJob) -> EncodedGroup:
        base, target = self.tensors(job)
        compared = self.compare(base, target, job.first, job.stop, job.codec)
        changed, codec = sum(len(positions) for positions, _ in compared.changes), job.codec or "context"
        blocks = {codec: _pack(codec, compared, target, job.first)}
        if job.codec is None and changed:
            for other in _further_codecs(changed, sum(map(len, blocks[codec])), compared.nbytes):
                blocks[other] = _pack(other, compared, target, job.first)
        return EncodedGroup(blocks, changed, compared.leaves, compared.base_leaves, compared.nbytes)


def _further_codecs(changed: int, size: int, nbytes: int) -> Sequence[str]:
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


def smallest(group: EncodedGroup) -> str:
    """The codec of a tensor of one group: that which makes it the smallest, of those that were tried."""
    return min(group.blocks, key=group.size)


def choose_codec(groups: Sequence[EncodedGroup], units: int) -> str:
    """The codec of a tensor of several groups, given those that were tried; ``units``: of the target in the first of them.

    It is ``context`` if few units of the first group changed, or ``raw`` was not worth a trial in each; else the smaller of the two.
    """
    if groups[0].changed <= CONTEXT_SHARE * units or not all("raw" in group.blocks for group in groups):
        return "context"
    return min(("context", "raw"), key=lambda codec: sum(group.size(codec) for group in groups))


def is_independent(groups: Sequence[EncodedGroup], codec: str) -> bool:
    """Whether a tensor that was tried by ``raw`` may as well stand alone: its changes take hardly less."""
    if not all("raw" in group.blocks for group in groups):
        return False
    size, alone = (sum(group.size(which) for group in groups) for which in (codec, "raw"))
    return size >= DEPENDENCE_SHARE * alone
