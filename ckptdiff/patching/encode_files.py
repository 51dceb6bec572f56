"""Blocks of long tensors that lie in local files, encoded by ``context`` several at a time (spec sections 7 and 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ckptdiff import kernels
from ckptdiff.checkpoint.adapt import AdaptedBase
from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.codecs import context
from ckptdiff.format.digests import BLOCK
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.format.xxh3 import MAX_SHORT
from ckptdiff.io.source import LocalFile
from ckptdiff.patching.encode_group import EncodedGroup, further_codecs
from ckptdiff.patching.encode_plan import EncodeJob


class PartInFiles(NamedTuple):
    """A block of a target tensor and of its base, which lie in local files as they are."""

    job: EncodeJob
    base_file: LocalFile
    base_offset: int
    target_file: LocalFile
    target_offset: int
    dtype: str

    @property
    def place(self) -> tuple[int, int, str]:
        """What the blocks that are encoded at once have in common."""
        return id(self.base_file), id(self.target_file), self.dtype


def part_in_files(base: AdaptedBase, target: Tensor, job: EncodeJob) -> PartInFiles | None:
    """The block of a job that ``context`` may code; None if it does not lie in files like that, or is more than one."""
    whole, carrier = base.whole, DTYPES[target.dtype].carrier
    if whole is None or job.codec not in (None, "context") or carrier == 8 or not MAX_SHORT < job.nbytes <= BLOCK:
        return None
    if type(whole.source) is not LocalFile or type(target.source) is not LocalFile:
        return None
    start = job.first * carrier
    return PartInFiles(job, whole.source, whole.offset + start, target.source, target.offset + start, target.dtype)


def encode_from_files(parts: Sequence[PartInFiles]) -> list[EncodedGroup | None]:
    """Encode blocks of one place, as :func:`~ckptdiff.patching.encode_group.encode_group` does one by one.

    Returns:
        The first of them, maybe none: up to one that cannot be read, or is dense. None stands for one that another codec may code, too.
    """
    dtype, first = DTYPES[parts[0].dtype], parts[0]
    with first.base_file.descriptor() as base, first.target_file.descriptor() as target:
        blocks = [kernels.encode_files.FileBlock(base, p.base_offset, target, p.target_offset, p.job.nbytes) for p in parts]
        encoded = kernels.encode_files.encode(blocks, dtype, int(BLOCK // dtype.carrier * context.STATIC_SHARE), context.ADAPTIVE)
    groups = list[EncodedGroup | None]()
    for part, (coded, changed, base_leaf, leaf) in zip(parts, encoded, strict=False):
        nbytes, alone = part.job.nbytes, False
        if changed:
            several = part.job.codec is None and bool(further_codecs(changed, len(coded), nbytes))
            alone = several or context.is_dense(changed, nbytes // dtype.carrier, dtype)  # as a block that is not whole may be
        groups.append(None if alone else EncodedGroup({"context": [coded]}, changed, [leaf], [base_leaf], nbytes))
    return groups
