"""What of two checkpoints is hashed: blocks of tensors, and whole weight files, beside the encoding where threads do both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ckptdiff.checkpoint.adapt import AdaptedBase
from ckptdiff.checkpoint.contents import Checkpoint, Tensor
from ckptdiff.errors import cut
from ckptdiff.format.digests import xxh128
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.io.parallel import FileHasher, Work, sha256_file
from ckptdiff.io.source import WeightSource
from ckptdiff.patching.encode import GroupEncoder
from ckptdiff.patching.encode_group import EncodedGroup
from ckptdiff.patching.encode_plan import EncodeJob, FileHashJob, HashJob

Hashers = Mapping[int, FileHasher]
"""What hashes the weight files of both sides in this process, by ``id`` of their source."""


class LeafHasher(Work[HashJob, bytes]):
    """The leaves (spec 3.2) of blocks of two checkpoints."""

    def __init__(self, base: Checkpoint, target: Checkpoint) -> None:
        self.base, self.target = base, target

    def __call__(self, job: HashJob) -> bytes:
        tensor = (self.base if job.of_base else self.target).tensor(job.tensor)
        return xxh128(tensor.read(job.start, job.start + job.nbytes))

    def about(self, job: HashJob) -> str:
        """As of :class:`Work`."""
        return f"{(self.base if job.of_base else self.target).path}: tensor {cut(job.tensor.name)}, from byte {job.start} on"


class EncodeAndHash(Work[EncodeJob, EncodedGroup]):
    """Encodes groups; what was read of files for that is hashed by then, or later by another thread.

    Other processes only encode: a file is hashed in order, and each of them reads parts.
    """

    def __init__(self, encoder: GroupEncoder, hashers: Hashers) -> None:
        self.encoder, self.hashers = encoder, hashers

    def many(self, jobs: Sequence[EncodeJob]) -> list[EncodedGroup]:
        """As of :class:`Work`."""
        groups = self.encoder.many(jobs)
        if not self.hashers:
            return groups
        reached = dict[int, int]()  # by file, as far as the jobs reach
        for job in jobs:
            for number, end in self._ends(*self.encoder.tensors(job), job.stop):
                if end > reached.get(number, -1):
                    reached[number] = end
        self._advance(reached.items())
        return groups

    def __call__(self, job: EncodeJob) -> EncodedGroup:
        group = self.encoder(job)
        self.hash_to(*self.encoder.tensors(job), job.stop)
        return group

    def hash_to(self, base: AdaptedBase | None, target: Tensor, stop: int) -> None:
        """Hash the files of a tensor and its base as far as units before ``stop`` lie in them."""
        self._advance(self._ends(base, target, stop))

    def _advance(self, ends: Iterable[tuple[int, int]]) -> None:
        for number, end in ends:
            if number in self.hashers:
                self.hashers[number].advance(end)

    @staticmethod
    def _ends(base: AdaptedBase | None, target: Tensor, stop: int) -> list[tuple[int, int]]:
        """The files of a tensor and of a base that is one: the ``id`` of each source, and where units before ``stop`` end in it."""
        size = min(stop * DTYPES[target.dtype].carrier, target.nbytes)
        ends = [(id(target.source), target.offset + size)]
        if base is not None and base.whole is not None:
            ends.append((id(base.whole.source), base.whole.offset + size))
        return ends

    def weight(self, job: EncodeJob) -> int:
        """As of :class:`Work`."""
        return self.encoder.weight(job)

    def about(self, job: EncodeJob) -> str:
        """As of :class:`Work`."""
        return self.encoder.about(job)

    @property
    def elsewhere(self) -> GroupEncoder:
        """As of :class:`Work`."""
        return self.encoder


class FileHashing(Work[FileHashJob, str]):
    """The SHA-256 of weight files: the rest of it, of files that this process has begun to hash."""

    def __init__(self, base: list[WeightSource], target: list[WeightSource], hashers: Hashers) -> None:
        self.base, self.target, self.hashers = base, target, hashers

    def __reduce__(self) -> tuple[Any, ...]:
        return FileHashing, (self.base, self.target, {})

    def _source(self, job: FileHashJob) -> WeightSource:
        return (self.base if job.of_base else self.target)[job.file]

    def __call__(self, job: FileHashJob) -> str:
        source = self._source(job)
        hasher = self.hashers.get(id(source))
        return hasher.hexdigest() if hasher is not None else sha256_file(source)

    def about(self, job: FileHashJob) -> str:
        """As of :class:`Work`."""
        return f"{self._source(job).name}: its SHA-256"
