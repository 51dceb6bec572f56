"""Tensors of two checkpoints encoded group by group, and the choice of a codec (spec sections 7 and 8)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from ckptdiff.checkpoint.adapt import AdaptedBase
from ckptdiff.checkpoint.contents import Checkpoint, Tensor, TensorKey
from ckptdiff.checkpoint.gather import SMALL_TENSOR, within
from ckptdiff.errors import cut
from ckptdiff.format.digests import BLOCK
from ckptdiff.io.parallel import MOST_JOBS, Work
from ckptdiff.patching.compare_on_host import Comparer, compare_on_host
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

    def __reduce__(self) -> tuple[Any, ...]:
        return GroupEncoder, (self.base, self.target, self.compare)

    def keep(self, plans: Iterable[TensorPlan]) -> None:
        """Keep the bases of tensors whose jobs come next, which this process need not put together again."""
        self._bases = {plan.target.key: plan.base for plan in plans if plan.base is not None}

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
            else:
                groups[k] = self(job)
        noted = by_parts(self.noted) if self.noted is not None else None
        for parts in apart.values():
            for numbers in within(parts, lambda k: jobs[k].nbytes, BYTES_TOGETHER):
                groups.update(zip(numbers, encode_apart([parts[k] for k in numbers], noted), strict=True))
        for (_, codec), pairs in alike.items():
            for numbers in within(pairs, lambda k: jobs[k].nbytes, BLOCK):
                bases, targets = zip(*(pairs[k] for k in numbers), strict=True)
                groups.update(zip(numbers, encode_together(bases, targets, codec, self.noted), strict=True))
        return [groups[k] for k in range(len(jobs))]

    def __call__(self, job: EncodeJob) -> EncodedGroup:
        base, target = self.tensors(job)
        compared = self.compare(base, target, job.first, job.stop, job.codec)
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
