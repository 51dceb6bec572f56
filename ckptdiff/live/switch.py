"""A patch decoded against tensors in memory, which is applied to them and reverted in place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import groupby, islice
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ckptdiff import device, kernels
from ckptdiff.errors import BaseMismatchError, IntegrityError, cut
from ckptdiff.format.digests import BLOCK, block_count, tensor_digest
from ckptdiff.io.parallel import MOST_JOBS, Threads, batches
from ckptdiff.lazy import torch
from ckptdiff.live.hashing import leaves_in_memory
from ckptdiff.live.names import MODEL
from ckptdiff.live.updates import BYTES_PER_UPDATE_JOB, RangeUpdate, TensorUpdate
from ckptdiff.live.writing import MemoryRange, writing
from ckptdiff.patching.torch_dtypes import memory_of, memory_range


class Step(Protocol):
    """A part of what a patch changes, which one thread moves at once."""

    def take_back(self, back: bool) -> None:
        """Undo what was done of an update the other way; ``back``: whether by moving units back."""


class LoadedPatch(ABC):
    """A patch decoded against the tensors of a model, to be applied and reverted in place; made by :meth:`Patch.load`.

    Args:
        name: what messages call the patch.
        memory: of all tensors that it was loaded for.
        threads: how many to use.
        find_tensors: gives the model's tensors as they are now, by their names in the patch.
    """

    def __init__(self, name: str, memory: list[MemoryRange], threads: int, find_tensors: Callable[[], Mapping[str, Any]]) -> None:
        self._name, self._memory, self._threads, self._find_tensors = name, memory, threads, find_tensors
        self.applied = False

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of memory that the changes take."""

    @abstractmethod
    def touched(self) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
        """Each tensor on the host that the patch changes, with the numbers of its units that change, rising."""

    def apply_(self, *, check: bool = True) -> None:
        """Turn base into target in place.

        Args:
            check: compare the digests of all tensors before, and of the changed ones afterwards. Without it the model must have the
                base's content: nothing notices if it does not.

        Raises:
            BaseMismatchError: the model does not have the base's content, or its tensors are not those that the patch was loaded for;
                nothing was written.
            IntegrityError: the result is not the target; the changes were taken back.
        """
        with writing(self._memory):
            if self.applied:
                raise BaseMismatchError(f"{self._name}: is applied already: revert it first", "already_target")
            arrays = self._changed_tensors()
            if check:
                self._check(False)
            self._write(False, check, arrays)

    def revert_(self, *, check: bool = True) -> None:
        """Turn target into base in place, with the arguments and errors of :meth:`apply_`."""
        with writing(self._memory):
            if not self.applied:
                raise BaseMismatchError(f"{self._name}: is not applied: there is nothing to revert")
            arrays = self._changed_tensors()
            if check:
                self._check(True)
            self._write(True, check, arrays)

    def write(self, back: bool, check: bool, just_loaded: Mapping[str, Any] | None = None) -> None:
        """Apply all changes, or take them ``back``. What is there before is not checked; the result is, with ``check``.

        ``just_loaded``: the model's tensors, if the patch was loaded for them within the same :func:`~ckptdiff.live.writing.writing`.
        """
        arrays = self._changed_tensors() if just_loaded is None else [just_loaded[name] for name in self._changed_names()]
        self._write(back, check, arrays)

    def _write(self, back: bool, check: bool, arrays: Sequence[Any]) -> None:
        """As :meth:`write`, given the model's tensors that change."""
        steps = self._steps()
        try:
            self._run(steps, back, check)
        except BaseException:
            for step in steps:
                step.take_back(not back)
            raise
        finally:
            tensors = [array for array in arrays if not isinstance(array, np.ndarray)]
            if tensors:  # as torch's own writes do: a backward pass through the old values then fails
                torch.autograd.graph.increment_version(tensors)
        self.applied = not back

    @abstractmethod
    def _changed_names(self) -> Iterable[str]:
        """The names of the tensors that change."""

    @abstractmethod
    def _changed_tensors(self) -> list[Any]:
        """The model's tensors that the patch changes; raises BaseMismatchError unless all have the memory that it was loaded for."""

    @abstractmethod
    def _check(self, applied: bool) -> None:
        """Raise BaseMismatchError unless each tensor has the target's content (if ``applied``) or the base's."""

    @abstractmethod
    def _steps(self) -> Sequence[Step]:
        """What is to be done, of which nothing is done yet."""

    @abstractmethod
    def _run(self, steps: Sequence[Any], back: bool, check: bool) -> None:
        """Apply all changes, or take them back; with ``check`` raise IntegrityError if the result is not what it must be."""

    def _unlike(self, name: str, found: bytes, expected: bytes, applied: bool) -> BaseMismatchError:
        """The error if a tensor does not have the digest of the target, or the base."""
        state = "was changed since the patch was applied." if applied else "is not the base: is another patch applied?"
        return BaseMismatchError(
            f"{MODEL}: tensor {cut(name)} has the digest {found.hex()}, expected {expected.hex()}: it {state} Nothing was written"
        )

    def _wrong_result(self, name: str, found: bytes, expected: bytes) -> IntegrityError:
        """The error if a tensor came out otherwise."""
        return IntegrityError(
            f"{MODEL}: tensor {cut(name)} came out with the digest {found.hex()}, expected {expected.hex()}: "
            f"{self._name} is broken, or another thread wrote to the tensor; it was taken back"
        )

    def _replaced(self, name: str) -> BaseMismatchError:
        """The error if a tensor has other memory now."""
        return BaseMismatchError(
            f"{MODEL}: tensor {cut(name)} is not the one that {self._name} was loaded for: was the model cast, moved or "
            "loaded anew? Load the patch again; nothing was written"
        )


class LoadedUpdates(LoadedPatch):
    """A patch decoded to updates of tensors on any device.

    Args:
        name, threads, find_tensors: as of :class:`LoadedPatch`.
        updates: the changes of each tensor.
    """

    def __init__(self, name: str, updates: Sequence[TensorUpdate], threads: int, find_tensors: Callable[[], Mapping[str, Any]]) -> None:
        super().__init__(name, [memory_range(update.flat) for update in updates], threads, find_tensors)
        self._updates = updates

    @property
    def nbytes(self) -> int:
        """As of :class:`LoadedPatch`."""
        return sum(part.nbytes for update in self._updates for part in update.parts)

    def touched(self) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
        """As of :class:`LoadedPatch`."""
        for update in self._updates:
            if update.parts and isinstance(update.flat, np.ndarray):
                width = update.dtype.carrier
                places = [np.flatnonzero(part.zigzags) if part.positions is None else part.positions for part in update.parts]
                rows = zip(places, update.parts, strict=True)
                yield update.name, np.concatenate([found.astype(np.int64) + part.start // width for found, part in rows])

    def _changed_names(self) -> Iterable[str]:
        return (update.name for update in self._updates if update.parts)

    def _changed_tensors(self) -> list[Any]:
        now, arrays = self._find_tensors(), []
        for update, memory in zip(self._updates, self._memory, strict=True):
            array = now.get(update.name)
            if array is None or (memory[2] and memory_of(array, f"{MODEL}: {cut(update.name)}") != memory):
                raise self._replaced(update.name)
            if update.parts:
                arrays.append(array)
        return arrays

    def _check(self, applied: bool) -> None:
        leaves_by_tensor = leaves_in_memory([update.flat for update in self._updates], self._threads)
        for update, leaves in zip(self._updates, leaves_by_tensor, strict=True):
            found, expected = tensor_digest(leaves), update.digest if applied else tensor_digest(update.before)
            if found != expected:
                raise self._unlike(update.name, found, expected, applied)

    def _steps(self) -> list[_Batch]:
        return list(_batches(self._updates))

    def _run(self, steps: Sequence[_Batch], back: bool, check: bool) -> None:
        for update, leaves in self._update_all(steps, back, check):
            found, expected = tensor_digest(leaves), tensor_digest(update.before) if back else update.digest
            if check and found != expected:
                raise self._wrong_result(update.name, found, expected)

    def _update_all(self, steps: Sequence[_Batch], back: bool, check: bool) -> Iterator[tuple[TensorUpdate, list[bytes]]]:
        """Apply all changes, or take them back.

        Yields:
            Each tensor with its leaves afterwards, if they are to be checked.
        """
        on_devices = [update for update in self._updates if update.parts and not isinstance(update.flat, np.ndarray)]
        # Ctrl-C never interrupts a kernel that moves units; for what torch does on a device two threads see to it
        execute = Threads(max(self._threads, 2) if on_devices else self._threads)
        with closing(execute(lambda batch: batch.update(back, check), steps)) as results:
            parts = (leaves for batch in results for leaves in batch)
            for update in self._updates:
                if not isinstance(update.flat, np.ndarray):
                    for _ in update.parts:
                        next(parts)
                    continue
                leaves = list(update.before)
                for part in update.parts:
                    changed = next(parts)
                    leaves[part.start // BLOCK : part.start // BLOCK + len(changed)] = changed
                yield update, leaves
        if check:  # all at once: a device hashes a thousand leaves in the time of one
            yield from zip(on_devices, leaves_in_memory([update.flat for update in on_devices], self._threads), strict=True)


class _Job(NamedTuple):
    """A range of a tensor to update."""

    update: TensorUpdate
    part: RangeUpdate

    @property
    def nbytes(self) -> int:
        return self.part.stop - self.part.start

    @property
    def alike(self) -> tuple[bool, str]:
        """What ranges that are updated by one call have in common."""
        return isinstance(self.update.flat, np.ndarray), self.update.dtype.name


def _batches(updates: Iterable[TensorUpdate]) -> Iterator[_Batch]:
    """All ranges to update, in order."""
    for _, jobs in groupby((_Job(update, part) for update in updates for part in update.parts), key=lambda job: job.alike):
        yield from map(_Batch, batches(jobs, BYTES_PER_UPDATE_JOB, MOST_JOBS))


class _Batch:
    """Ranges of tensors of one dtype, all on the host or none, that are updated at once."""

    def __init__(self, jobs: list[_Job]) -> None:
        self.jobs, self.moved = jobs, np.zeros(len(jobs), np.uint8)

    @property
    def nbytes(self) -> int:
        return sum(job.nbytes for job in self.jobs)

    def update(self, back: bool, hashed: bool) -> list[list[bytes]]:
        """Apply the changes, or take them back; returns the new leaves of each range that is on the host, if ``hashed``."""
        dtype, moves, leaves = self.jobs[0].update.dtype, list[Any](), list[list[bytes]]()
        for k, (update, part) in enumerate(self.jobs):
            flat = update.flat[part.start : part.stop]
            if isinstance(flat, np.ndarray):
                moves.append(kernels.moves.Move(flat, part.positions, part.zigzags))
                continue
            device.ops.apply_changes(device.ops.units_of(flat, dtype), part.positions, part.zigzags, dtype, back)
            self.moved[k] = 1
            leaves.append([])
        if not moves:
            return leaves
        found = iter(kernels.moves.move_runs(moves, dtype, back, hashed, self.moved))
        return [list(islice(found, block_count(len(move.run)))) for move in moves]

    def take_back(self, back: bool) -> None:
        """Undo what :meth:`update` has done of an update the other way."""
        done = [job for job, moved in zip(self.jobs, self.moved.tolist(), strict=True) if moved]
        if done:
            _Batch(done).update(back, False)
