"""Tensors of two checkpoints encoded group by group, and the choice of a codec (spec sections 7 and 8)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from ckptdiff.checkpoint.adapt import AdaptedBase
from ckptdiff.checkpoint.contents import Checkpoint, Tensor, TensorKey
from ckptdiff.checkpoint.gather import LARGE_CHECKPOINT, SMALL_TENSOR, within
from ckptdiff.codecs import context
from ckptdiff.errors import cut
from ckptdiff.format.digests import BLOCK
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.io.parallel import MOST_JOBS, Work, lightness
from ckptdiff.patching.compare_on_host import Comparer, compare_on_host
from ckptdiff.patching.encode_files import PartInFiles, encode_from_files, part_in_files
from ckptdiff.patching.encode_group import EncodedGroup, Noted, encode_group, encode_together
from ckptdiff.patching.encode_in_memory import BYTES_TOGETHER, PartInMemory, by_parts, encode_apart, part_in_memory
from ckptdiff.patching.encode_plan import EncodeJob, JobBase, TensorPlan

CONTEXT_SHARE = 0.4
"""Up to this share of changed units, ``context`` needs about ``RAW_TRIAL_SHARE`` of the bytes at most: a long tensor is coded by it."""
DEPENDENCE_SHARE = 0.98
"""If a tensor's changes take this share of what ``raw`` needs, or more, its base is of no use."""
KEPT_BASES = MOST_JOBS
"""Bases that an encoder keeps."""


class GroupEncoder(Work[EncodeJob, EncodedGroup]):
    """Encodes groups of blocks, given the open checkpoints that the jobs name tensors of. ``noted``: told what changes, in this process."""

    def __init__(self, base: Checkpoint, target: Checkpoint, compare: Comparer = compare_on_host, noted: Noted | None = None) -> None:
        self.base, self.target, self.compare, self.noted = base, target, compare, noted
        self._bases = dict[TensorKey, AdaptedBase]()
        self._dense, self._latest = dict[TensorKey, bool](), True  # whether a block of a tensor is; and whether the block before was
        size = sum(file.header.data_size for file in target.weights)
        self._lightness, self._is_large = lightness(size), size >= LARGE_CHECKPOINT

    def __reduce__(self) -> tuple[Any, ...]:
        return GroupEncoder, (self.base, self.target, self.compare)

    def keep(self, plans: Iterable[TensorPlan]) -> None:
        """Keep the bases of tensors whose jobs come next, which this process need not put together again."""
        self._bases = {plan.target.key: plan.base for plan in plans if plan.base is not None}
        self._dense.clear()

    def weight(self, job: EncodeJob) -> int:
        """As of :class:`Work`: where few units of a tensor change, blocks take little memory once they are encoded."""
        return job.nbytes // self._lightness if self._dense.get(job.target) is False and job.codec == "context" else job.nbytes

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
                self._bases = {}
            self._bases[target.key] = known
        return known

    def many(self, jobs: Sequence[EncodeJob]) -> list[EncodedGroup]:
        """As of :class:`Work`: small tensors are encoded together, and so is what ``sparse`` codes of tensors in memory."""
        groups, apart = dict[int, EncodedGroup](), defaultdict[str, dict[int, PartInMemory]](dict)
        alike = defaultdict[tuple[str, str | None], dict[int, tuple[AdaptedBase, Tensor]]](dict)
        in_files = dict[int, PartInFiles]()
        for k, job in enumerate(jobs):
            base, target = self.tensors(job)
            if base is None or job.nbytes == 0 or job.codec == "raw" or self.compare is not compare_on_host:
                groups[k] = self(job)
                continue
            part = part_in_memory(base, target, job) if job.codec == "sparse" else None
            if part is not None:
                apart[target.dtype][k] = part
            elif job.nbytes == target.nbytes <= SMALL_TENSOR:
                alike[target.dtype, job.codec][k] = base, target
            elif (found := self._in_files(base, target, job)) is not None:
                in_files[k] = found
            else:
                groups[k] = self(job)
        groups.update(self._encode_files(in_files))
        noted = by_parts(self.noted) if self.noted is not None else None
        for parts in apart.values():
            for numbers in within(parts, lambda k: jobs[k].nbytes, BYTES_TOGETHER):
                groups.update(zip(numbers, encode_apart([parts[k] for k in numbers], noted), strict=True))
        for (_, codec), pairs in alike.items():
            for numbers in within(pairs, lambda k: jobs[k].nbytes, BLOCK):
                bases, targets = zip(*(pairs[k] for k in numbers), strict=True)
                groups.update(zip(numbers, encode_together(bases, targets, codec, self.noted), strict=True))
        return [groups[k] for k in range(len(jobs))]

    def _in_files(self, base: AdaptedBase, target: Tensor, job: EncodeJob) -> PartInFiles | None:
        """What a job encodes, if it may be done together with others of files: not if its tensor has shown to be dense."""
        together = self._is_large and self.noted is None and not self._dense.get(target.key, self._latest)
        return part_in_files(base, target, job) if together else None

    def _encode_files(self, parts: Mapping[int, PartInFiles]) -> Iterator[tuple[int, EncodedGroup]]:
        """Encode blocks of files, those of one pair of files at once; what needs another way is done alone."""
        for _, numbers in groupby(parts, lambda k: parts[k].place):
            left = list(numbers)
            while left:
                done: list[EncodedGroup | None] = encode_from_files([parts[k] for k in left]) if len(left) > 1 else []
                for k, group in zip(left, done, strict=False):
                    yield k, group if group is not None else self(parts[k].job)
                for target in {parts[k].job.target for k in left[: len(done)]}:
                    self._note_dense(target, False)
                for k in left[len(done) :][:1]:
                    yield k, self(parts[k].job)
                left = left[len(done) + 1 :]

    def _note_dense(self, target: TensorKey, is_dense: bool) -> None:
        """Note whether a block is dense. One of a tensor says that its others may be, too, and the latest what those of the next may be."""
        self._dense[target] = is_dense or self._dense.get(target, False)
        self._latest = is_dense

    def __call__(self, job: EncodeJob) -> EncodedGroup:
        base, target = self.tensors(job)
        compared = self.compare(base, target, job.first, job.stop, job.codec)
        if base is not None and job.nbytes > SMALL_TENSOR and self.compare is compare_on_host:
            changed, units = sum(len(positions) for positions, _ in compared.changes), compared.nbytes // DTYPES[target.dtype].carrier
            self._note_dense(job.target, context.is_dense(changed, units, DTYPES[target.dtype]))
        if self.noted is not None:
            self.noted(target, job.first, compared.changes)
        return encode_group(compared, target, job.first, job.codec)


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
