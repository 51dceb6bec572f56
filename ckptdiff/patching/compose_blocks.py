"""What the entries of a chain come to, block by block, without the base (spec section 10.1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ckptdiff import codecs, kernels
from ckptdiff.errors import FormatError, cut
from ckptdiff.format.digests import BLOCK, xxh128
from ckptdiff.format.dtypes import DTYPES, BlockChange, Bytes, Replacement
from ckptdiff.format.entry import Entry
from ckptdiff.io.parallel import Work
from ckptdiff.io.scratch import scratch
from ckptdiff.patching.compose_history import PayloadFile, Step, Steps


@dataclass(frozen=True, slots=True)
class BlockJob:
    """A block of a tensor to compose."""

    tensor: int
    """Number of the tensor in a list."""
    block: int
    nbytes: int
    """Bytes of the block."""


@dataclass(frozen=True, slots=True)
class ComposedBlock:
    """A block that is composed."""

    coded: bytes
    changed: int
    """How many units all entries together change; 0 where the whole content is stored."""
    counts: npt.NDArray[np.int64]
    """How many units each entry changes; 0 for one that has the whole content."""
    leaf: bytes
    """The block's leaf (spec 3.2) where the content is known, else empty."""


@dataclass(frozen=True, slots=True)
class SummedTensor:
    """A tensor whose entries are put together."""

    entry: Entry
    """The last patch's."""
    steps: Steps
    is_known: bool
    """Whether the first of the steps has the whole content, so that the result has it too; else they are summed."""


def jobs(tensors: Iterable[SummedTensor]) -> Iterator[BlockJob]:
    """The jobs of some tensors, in order."""
    for number, tensor in enumerate(tensors):
        size = tensor.entry.nbytes
        for block, start in enumerate(range(0, size, BLOCK)):
            yield BlockJob(number, block, min(BLOCK, size - start))


class BlockComposer(Work[BlockJob, ComposedBlock]):
    """Does the jobs of a list of tensors: one block, through all patches."""

    def __init__(self, files: Sequence[PayloadFile], tensors: Sequence[SummedTensor]) -> None:
        self.files, self.tensors = files, tensors

    def __call__(self, job: BlockJob) -> ComposedBlock:
        tensor = self.tensors[job.tensor]
        return self._build(tensor, job) if tensor.is_known else self._sum(tensor, job)

    def about(self, job: BlockJob) -> str:
        """As of :class:`Work`."""
        return f"tensor {cut(self.tensors[job.tensor].entry.name)}, block {job.block}"

    def _sum(self, tensor: SummedTensor, job: BlockJob) -> ComposedBlock:
        """Add the ulp distances of all entries."""
        dtype, counts = DTYPES[tensor.entry.dtype], np.zeros(len(tensor.steps), np.int64)
        sums = scratch("sums", job.nbytes // dtype.carrier, dtype.unit)
        sums[:] = 0
        for k, step in enumerate(tensor.steps):
            coded = self._read(step, job.block)
            if len(coded):
                changes = self._unpack(tensor.entry, step, job, coded, None)
                assert not isinstance(changes, Replacement)
                counts[k] = len(changes[0])
                kernels.sums.add_changes(sums, changes)
        total = kernels.sums.changes_of_sums(sums, dtype)
        return ComposedBlock(codecs.sparse.pack(None, total, dtype), len(total[0]), counts, b"")

    def _build(self, tensor: SummedTensor, job: BlockJob) -> ComposedBlock:
        """Build the content, and code it whole."""
        dtype, counts = DTYPES[tensor.entry.dtype], np.zeros(len(tensor.steps), np.int64)
        data: Bytes = np.zeros(job.nbytes, np.uint8)
        for k, step in enumerate(tensor.steps):
            change = self._unpack(tensor.entry, step, job, self._read(step, job.block), data)
            data, changed, _ = codecs.apply_change(change, data, dtype)
            counts[k] = changed if k else 0
        return ComposedBlock(codecs.raw.pack(None, Replacement(data), dtype), 0, counts, xxh128(data))

    def _read(self, step: Step, block: int) -> memoryview:
        """The coded form of a block, in scratch."""
        file = self.files[step.file]
        begin, end = file.place(step.first + block, step.first + block + 1)
        coded = scratch("coded", end - begin, np.uint8)
        if begin < end:
            file.source.readinto(begin, coded)
        return memoryview(coded)

    def _unpack(self, entry: Entry, step: Step, job: BlockJob, coded: memoryview, base: Bytes | None) -> BlockChange:
        try:
            return codecs.CODECS[step.codec].unpack(coded, base, job.nbytes, DTYPES[entry.dtype])
        except ValueError as error:
            raise FormatError(f"{self.files[step.file].name}: tensor {cut(entry.name)}, block {job.block}: {error}") from None
