"""Target tensors built by their recipes, range by range, and the checks of what was built (spec section 10, step 4)."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from ckptdiff import codecs
from ckptdiff.checkpoint.adapt import AdaptedBase, extended, units_per_group
from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.checkpoint.gather import within
from ckptdiff.errors import CkptdiffError, FormatError, IntegrityError, cut
from ckptdiff.format.digests import BLOCK, block_count, leaves_of, tensor_digest, xxh128
from ckptdiff.format.dtypes import DTYPES, BlockChange, Bytes
from ckptdiff.io.parallel import Executor, Threads, Work, run_plan
from ckptdiff.patching.build_files import FilesBuilder
from ckptdiff.patching.build_together import BuiltTogether, can_join
from ckptdiff.patching.file_sink import FileSink
from ckptdiff.patching.recipes import (
    AdaptedTensor,
    PatchedTensor,
    RebuildJob,
    Recipe,
    about_recipe,
    ranges,
    steps_built_whole,
    steps_of,
    units_of,
)

T = TypeVar("T")
Sink = Callable[[RebuildJob, Bytes], T]
"""Takes the bytes of a range, on the thread that built them. They may be scratch, which the thread's next range overwrites."""


def no_sink(job: RebuildJob, data: Bytes) -> None:
    """A :data:`Sink` for what is only checked."""


@dataclass(slots=True)
class BuiltRange:
    """A range of a target tensor, with what is known of each step that led to it, the base's first."""

    data: Bytes
    """Its bytes. They may be scratch, which this thread's next range overwrites."""
    leaves: list[list[bytes]]
    """Leaves (spec 3.2) of what each step gave."""
    changed: list[int]
    """Number of units that each step changed."""


class Latest(threading.local):
    """The range that a thread built last: of the tensors of a run, taken step by step, each goes on from it."""

    recipe: Recipe | None = None
    start: int
    stop: int
    built: BuiltRange

    def note(self, recipe: Recipe, start: int, stop: int, built: BuiltRange) -> None:
        """Keep a range, of which the bytes are copied."""
        self.recipe, self.start, self.stop = recipe, start, stop
        self.built = BuiltRange(built.data.copy(), [*built.leaves], [*built.changed])

    def find(self, recipe: Recipe, start: int, stop: int) -> BuiltRange | None:
        """The range, if it is this one."""
        if self.recipe is not recipe or (self.start, self.stop) != (start, stop):
            return None
        return BuiltRange(self.built.data, [*self.built.leaves], [*self.built.changed])


def build(recipe: Recipe, start: int, stop: int, latest: Latest | None = None) -> BuiltRange:
    """Build bytes ``start`` to ``stop``, a range of :func:`~ckptdiff.patching.recipes.ranges`; from ``latest``, if that is on the way.

    Raises:
        FormatError: a block cannot be decoded.
    """
    found = latest.find(recipe, start, stop) if latest is not None else None
    if found is not None:
        return found
    if isinstance(recipe, AdaptedTensor):
        built, leaves, changed = _adapted(recipe, start, stop), None, 0
    else:
        if recipe.base is None:
            built = BuiltRange(np.zeros(stop - start, np.uint8), [], [])
        else:
            built = build(recipe.base, start, stop, latest)
        leaves, changed = _decode(recipe, built, start // BLOCK)
    built.leaves.append(leaves_of(built.data) if leaves is None else leaves)
    built.changed.append(changed)
    return built


def _adapted(step: AdaptedTensor, start: int, stop: int) -> BuiltRange:
    """A range of an adapted base, with what is known of the steps before it."""
    if isinstance(step.source, AdaptedBase):
        return BuiltRange(step.source.read(start, stop, "read"), [], [])
    lower, carrier, width = step.source, DTYPES[step.dtype].carrier, DTYPES[step.source.dtype].carrier
    first, last = start // carrier, max(min(stop // carrier, step.used), start // carrier)
    group = units_per_group(*(step.dtype for step in steps_of(lower)))
    end = min(first + -(-(last - first) // group) * group, units_of(lower))  # what is decoded is whole blocks in all steps
    built = build(lower, first * width, max(end, first) * width)
    built.data = extended(built.data[: (last - first) * width], lower.dtype, step.dtype, stop - start)
    return built


def _decode(step: PatchedTensor, built: BuiltRange, first: int) -> tuple[list[bytes], int]:
    """Turn the adapted bytes of a run of blocks, from number ``first`` on, into the target's.

    Returns:
        The leaves of the target's blocks, and how many units changed.
    """
    entry, dtype, base = step.entry, DTYPES[step.entry.dtype], built.data
    parts, leaves, changed = [], list[bytes](), 0
    for k, coded in enumerate(step.file.payloads.read_blocks(entry, first, first + block_count(len(base)))):
        block = base[k * BLOCK : (k + 1) * BLOCK]
        part, count, leaf = codecs.apply_change(unpack(step, first + k, coded, block, len(block)), block, dtype)
        parts.append(part)
        leaves.append(leaf or (built.leaves[-1][k] if built.leaves else xxh128(part)))
        changed += count
    if parts:
        built.data = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return leaves, changed


def unpack(step: PatchedTensor, block: int, coded: memoryview, base: Bytes | None, size: int) -> BlockChange:
    """The change of an entry's block.

    Args:
        step: whose entry it is.
        block: the block's number.
        coded, base, size: as of :meth:`ckptdiff.codecs.Codec.unpack`.

    Raises:
        FormatError: the coded form breaks a rule.
    """
    entry = step.entry
    try:
        return codecs.CODECS[entry.codec or ""].unpack(coded, base, size, DTYPES[entry.dtype])
    except ValueError as error:
        raise block_error(step, block, error) from None


def block_error(step: PatchedTensor, block: int, error: ValueError) -> FormatError:
    """The error of a block of an entry that breaks a rule."""
    return FormatError(f"{step.file.source.name}: tensor {cut(step.entry.name)}, block {block}: {error}")


class TensorCheck:
    """What was built of one tensor, range by range, on any thread; and its check once all ranges are there."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self._ranges = recipe, dict[int, tuple[list[list[bytes]], list[int]]]()

    def add(self, start: int, leaves: list[list[bytes]], changed: list[int]) -> None:
        """Note what is known of the range that begins at byte ``start``, as of :class:`BuiltRange`. A range may be built again."""
        self._ranges[start] = leaves, changed

    def take(self, start: int) -> tuple[list[list[bytes]], list[int]] | None:
        """Forget what :meth:`add` noted of a range, and return it; None if it noted nothing."""
        return self._ranges.pop(start, None)

    def finish(self, cache: CheckCache) -> None:
        """Compare the digests of the tensor, and of all tensors that it was built from, the base's first; and forget all ranges.

        Raises:
            BaseMismatchError: an adapted base has another content than the patch was made from.
            FormatError, IntegrityError: an entry has changed another number of units, or gives another digest, than it says.
        """
        steps, longer = steps_built_whole(self.recipe)
        if longer is not None:
            cache.check(longer)
        before, ranges_in_order = len(steps_of(longer)), [self._ranges[start] for start in sorted(self._ranges)]
        for k, step in enumerate(steps, before):
            digest = tensor_digest(leaf for leaves, _ in ranges_in_order for leaf in leaves[k])
            if isinstance(step, PatchedTensor):
                check_changed(step, sum(changed[k] for _, changed in ranges_in_order))
                _check_digest(step, digest)
            elif digest != step.digest:
                raise step.mismatch(digest)
        self._ranges.clear()


def check_changed(step: PatchedTensor, changed: int) -> None:
    """Raise FormatError unless an entry has changed as many units as it says."""
    if step.entry.kind == "delta" and changed != step.entry.changed:
        where = f"{step.file.source.name}: tensor {cut(step.entry.name)}"
        raise FormatError(f"{where}: its blocks change {changed} units, expected {step.entry.changed}")


def _check_digest(step: PatchedTensor, digest: bytes) -> None:
    if digest != step.digest:
        where = f"{step.file.source.name}: tensor {cut(step.entry.name)}"
        raise IntegrityError(f"{where}: rebuilt with the digest {digest.hex()}, expected {step.digest.hex()}: fetch the patch again")


def digest_of(tensor: Tensor) -> bytes:
    """Tensor digest of a tensor of a checkpoint, read block by block."""
    return tensor_digest(leaf for start in range(0, tensor.nbytes, BLOCK) for leaf in leaves_of(tensor.read(start, start + BLOCK)))


@dataclass(slots=True)
class Rebuilt(Generic[T]):
    """What a job gives."""

    leaves: list[list[bytes]]
    changed: list[int]
    """As of :class:`~ckptdiff.patching.build.BuiltRange`."""
    taken: T
    """What the sink made of the bytes."""


class RangeBuilder(Work[RebuildJob, Rebuilt[T]]):
    """Does the jobs of a list of recipes."""

    def __init__(self, recipes: Sequence[Recipe], sink: Sink[T]) -> None:
        self.recipes, self.sink = recipes, sink
        written = sink if isinstance(sink, FileSink) else None
        self._files = FilesBuilder(recipes, written) if written is not None or sink is no_sink else None

    def weight(self, job: RebuildJob) -> int:
        """As of :class:`Work`."""
        return self._files.weight(job) if self._files is not None else job.nbytes

    def many(self, jobs: Sequence[RebuildJob]) -> list[Rebuilt[T]]:
        """As of :class:`Work`: small tensors are built together."""
        done, alike = dict[int, Rebuilt[T]](), defaultdict[str, list[int]](list)
        for k, job in enumerate(jobs):
            if can_join(self.recipes[job.tensor]):
                alike[self.recipes[job.tensor].dtype].append(k)
        for numbers in (group for same in alike.values() for group in within(same, lambda k: jobs[k].nbytes, BLOCK)):
            built = BuiltTogether.of([self.recipes[jobs[k].tensor] for k in numbers]) if len(numbers) > 1 else None
            if built is not None:
                done.update(zip(numbers, self._taken([jobs[k] for k in numbers], built), strict=True))
        if self._files is not None:
            for k, block in self._files.build({k: job for k, job in enumerate(jobs) if k not in done}):
                done[k] = self._rebuilt(jobs[k], block.base_leaf, block.leaf, block.changed, None)
        return [done[k] if k in done else self(job) for k, job in enumerate(jobs)]

    def _rebuilt(self, job: RebuildJob, before: bytes, leaf: bytes, changed: int, taken: Any) -> Rebuilt[T]:
        """What is known of a block that one step, or two, gave."""
        if isinstance(self.recipes[job.tensor], AdaptedTensor):
            return Rebuilt([[leaf]], [0], taken)
        return Rebuilt([[before], [leaf]], [0, changed], taken)

    def _taken(self, jobs: Sequence[RebuildJob], built: BuiltTogether) -> Iterator[Rebuilt[T]]:
        """What the sink makes of tensors that were built together."""
        sink = self.sink
        taken: Iterable[Any] = sink.many(jobs, built.data) if isinstance(sink, FileSink) else map(sink, jobs, built.parts)
        for k, (job, part) in enumerate(zip(jobs, taken, strict=True)):
            yield self._rebuilt(job, built.before[k], built.leaves[k], built.changed[k], part)

    def __call__(self, job: RebuildJob) -> Rebuilt[T]:
        built = build(self.recipes[job.tensor], job.start, job.stop)
        return Rebuilt(built.leaves, built.changed, self.sink(job, built.data))

    def about(self, job: RebuildJob) -> str:
        """As of :class:`Work`."""
        return f"{about_recipe(self.recipes[job.tensor])}, from byte {job.start} on"

    def rest(self) -> None:
        """As of :class:`Work`: a file system of several machines shows what was written once the file is closed."""
        if isinstance(self.sink, FileSink):
            self.sink.close()


def rebuild(recipes: Sequence[Recipe], sink: Sink[T], execute: Executor, cache: CheckCache) -> Generator[tuple[RebuildJob, T], None, None]:
    """Build tensors range by range, and check each one after its last range.

    Yields:
        The jobs, in order, with what the sink made of them. A tensor is right once its last job has been yielded.

    Raises:
        FormatError, IntegrityError, BaseMismatchError: for the first tensor that is not what the patch states.
    """
    check: TensorCheck | None = None
    with closing(run_plan(execute, RangeBuilder(recipes, sink), plan(recipes))) as results:
        for job, result in results:
            check = check or TensorCheck(recipes[job.tensor])
            check.add(job.start, result.leaves, result.changed)
            if job.last:
                check.finish(cache)
                check = None
            yield job, result.taken


def plan(recipes: Sequence[Recipe]) -> Iterator[RebuildJob]:
    """The jobs that build tensors, told from headers and tables alone."""
    return (job for number, recipe in enumerate(recipes) for job in ranges(recipe, number))


class CheckCache:
    """Digests and checks of tensors that many entries start from, each done once: a patch may cut one tensor into a hundred thousand."""

    def __init__(self) -> None:
        self._digests: dict[int, bytes] = {}
        self._errors: dict[int, tuple[Recipe, CkptdiffError | None]] = {}  # with the recipe, whose number is its own while it is there
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[type[CheckCache], tuple[()]]:
        return CheckCache, ()  # another process finds out for itself

    def digest_of(self, tensor: Tensor) -> bytes:
        """Tensor digest of a base tensor."""
        with self._lock:
            if id(tensor) not in self._digests:
                self._digests[id(tensor)] = digest_of(tensor)
            return self._digests[id(tensor)]

    def check(self, recipe: Recipe) -> None:
        """Build a whole tensor, once; raises its error, at each call."""
        with self._lock:
            if id(recipe) not in self._errors:
                self._errors[id(recipe)] = recipe, self.error_of(recipe)
            error = self._errors[id(recipe)][1]
        if error is not None:
            raise error

    def error_of(self, recipe: Recipe) -> CkptdiffError | None:
        """Build a whole tensor; the error of one that does not come out as its patch states."""
        try:
            with closing(rebuild([recipe], no_sink, Threads(1), self)) as results:
                for _ in results:
                    pass
        except CkptdiffError as error:
            return error
        return None
