"""Blocks of long tensors built from local files, by ``context`` or as they are, several at a time (spec section 10, step 4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

from ckptdiff import kernels
from ckptdiff.checkpoint.adapt import AdaptedBase
from ckptdiff.checkpoint.gather import LARGE_CHECKPOINT, SMALL_TENSOR
from ckptdiff.codecs import context
from ckptdiff.format.digests import BLOCK
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.format.entry import Entry
from ckptdiff.format.patch_file import PatchFile
from ckptdiff.format.xxh3 import MAX_SHORT
from ckptdiff.io.parallel import lightness
from ckptdiff.io.source import LocalFile
from ckptdiff.patching.file_sink import FileSink
from ckptdiff.patching.recipes import AdaptedTensor, PatchedTensor, RebuildJob, Recipe


class TensorInFiles(NamedTuple):
    """A tensor that is built from local files."""

    base: LocalFile
    offset: int
    """The base's file, and where in it the tensor begins."""
    patch: LocalFile | None
    file: PatchFile | None
    entry: Entry | None
    """The patch's file, and its entry; None for a tensor that stays as it is."""
    dtype: str

    def place(self, target: object) -> tuple[int, int, int, str]:
        """What the blocks that are built at once have in common; ``target``: the file that they are written to."""
        return id(self.base), id(self.patch), id(target), self.dtype


def tensor_in_files(recipe: Recipe) -> TensorInFiles | None:
    """What a tensor is built from, if that lies in local files, and can be decoded by a kernel that reads it; else None."""
    step, file, entry = recipe, None, None
    if isinstance(recipe, PatchedTensor):
        if recipe.entry.codec != "context" or recipe.base is None or type(recipe.file.source) is not LocalFile:
            return None
        if context.is_dense(recipe.entry.changed, recipe.entry.units, DTYPES[recipe.dtype]):
            return None  # most blocks are of the other form
        step, file, entry = recipe.base, recipe.file, recipe.entry
    if not isinstance(step, AdaptedTensor) or not isinstance(step.source, AdaptedBase) or step.source.whole is None:
        return None
    whole = step.source.whole
    if type(whole.source) is not LocalFile:
        return None
    patch = file.source if file is not None and isinstance(file.source, LocalFile) else None
    return TensorInFiles(whole.source, whole.offset, patch, file, entry, recipe.dtype)


class FilesBuilder:
    """Builds blocks of tensors, by number in a list of recipes; ``sink``: what writes them, or None."""

    def __init__(self, recipes: Sequence[Recipe], sink: FileSink | None) -> None:
        self.recipes, self.sink = recipes, sink
        self._alone = set[int]()  # tensors of which one call could not build a block
        self._latest: tuple[int, TensorInFiles | None] = -1, None  # the tensor that was asked for, by number: most jobs are of the same

    @cached_property
    def _size(self) -> int:
        return sum(recipe.nbytes for recipe in self.recipes)

    def weight(self, job: RebuildJob) -> int:
        """As of :meth:`ckptdiff.io.parallel.Work.weight`: hardly more is kept of a block that is built here than its leaves."""
        return job.nbytes // lightness(self._size) if self._find(job) is not None else job.nbytes

    def _find(self, job: RebuildJob) -> TensorInFiles | None:
        """What a job is built from, if it is a block of a long tensor, and can be built here."""
        is_block = MAX_SHORT < job.nbytes <= BLOCK and job.start % BLOCK == 0
        if not is_block or job.tensor in self._alone or self.recipes[job.tensor].nbytes <= SMALL_TENSOR or self._size < LARGE_CHECKPOINT:
            return None
        number, found = self._latest
        if number != job.tensor:
            found = tensor_in_files(self.recipes[job.tensor])
            self._latest = job.tensor, found
        return found

    def build(self, jobs: Mapping[int, RebuildJob]) -> Iterator[tuple[int, kernels.decode_files.BuiltBlock]]:
        """Build blocks, those of the same files at once, and write them. What needs another way, or fails, is left out."""
        tensors = {k: found for k, job in jobs.items() if (found := self._find(job)) is not None}
        for _, numbers in groupby(tensors, lambda k: tensors[k].place(self.sink and self.sink.path(jobs[k]))):
            left = list(numbers)
            while len(left) > 1:
                some = left[: kernels.decode_files.MOST_BLOCKS]
                built = self._build([tensors[k] for k in some], [jobs[k] for k in some])
                yield from zip(some, built, strict=False)
                if len(built) < len(some):
                    self._alone.add(jobs[some[len(built)]].tensor)
                left = [k for k in left[len(built) :] if jobs[k].tensor not in self._alone]

    def _build(self, tensors: Sequence[TensorInFiles], jobs: Sequence[RebuildJob]) -> list[kernels.decode_files.BuiltBlock]:
        """Build blocks of one place, each of a tensor: the first of them, up to one that is of another form, or fails; maybe none."""
        ranges: list[kernels.decode_files.FileRange] = []
        first = tensors[0]
        with ExitStack() as stack:
            base = stack.enter_context(first.base.descriptor())
            patch = stack.enter_context(first.patch.descriptor()) if first.patch is not None else -1
            for tensor, job in zip(tensors, jobs, strict=True):
                begin, size = _payload(tensor, job.start // BLOCK)
                out, offset = self.sink.place(job) if self.sink is not None else (-1, 0)
                ranges.append(kernels.decode_files.FileRange(base, tensor.offset + job.start, patch, begin, size, out, offset, job.nbytes))
            return kernels.decode_files.decode(ranges, DTYPES[first.dtype], context.ADAPTIVE)


def _payload(tensor: TensorInFiles, block: int) -> tuple[int, int]:
    """Where the coded form of a block begins in the patch's file, and its bytes; nothing of a tensor that stays as it is."""
    if tensor.file is None or tensor.entry is None:
        return 0, 0
    return tensor.file.payloads.begin_of(tensor.entry, block), tensor.entry.blocks[block]
