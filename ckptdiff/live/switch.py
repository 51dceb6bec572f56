"""A patch decoded against tensors in memory, which is applied to them and reverted in place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from ckptdiff import device, kernels
from ckptdiff.errors import BaseMismatchError, IntegrityError, cut
from ckptdiff.format.digests import BLOCK, block_count, tensor_digest
from ckptdiff.format.dtypes import Bytes, Dtype
from ckptdiff.io.parallel import run_ordered
from ckptdiff.lazy import torch
from ckptdiff.patching.torch_dtypes import flat_bytes, memory_range

MODEL = "the model"
"""How messages call the tensors in memory."""

BYTES_PER_UPDATE_JOB = 8 * BLOCK
"""Bytes of a tensor that one job updates. Threads wait for Python's lock between jobs, longer than short jobs would take."""

BYTES_PER_HASH_JOB = 16 * BLOCK
"""Bytes of tensors that one job hashes."""


@dataclass(slots=True)
class RangeUpdate:
    """Changes of a range of a tensor's bytes.

    On the host a range is whole blocks, of about :data:`BYTES_PER_UPDATE_JOB` at most, and its arrays are numpy's. On another device it is
    the whole tensor, and they are torch's.
    """

    start: int
    stop: int
    """The range, in bytes of the tensor."""
    positions: Any
    """The units that change, counted from ``start``; None if every unit of the range has a distance."""
    zigzags: Any
    """Zigzag of their ulp distances."""

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays take."""
        return (0 if self.positions is None else self.positions.nbytes) + self.zigzags.nbytes


@dataclass(slots=True)
class TensorUpdate:
    """The changes of one tensor in memory, if it has any."""

    name: str
    dtype: Dtype
    flat: Bytes | torch.Tensor
    """The tensor's memory as bytes."""
    parts: list[RangeUpdate]
    before: list[bytes]
    """Leaves of the tensor without the patch."""
    digest: bytes
    """Tensor digest with the patch."""


WRITE_LOCK = threading.RLock()
"""Held while a model is written to: two threads that apply patches to one model would mix them."""


class LoadedPatch:
    """A patch decoded against the tensors of a model, to be applied and reverted in place; made by :meth:`Patch.load`.

    Args:
        name: what messages call the patch.
        updates: the changes of each tensor.
        threads: how many to use.
        find_tensors: gives the model's tensors as they are now, by the names of the updates.
    """

    def __init__(self, name: str, updates: Sequence[TensorUpdate], threads: int, find_tensors: Callable[[], Mapping[str, Any]]) -> None:
        self._name, self._updates, self._threads, self._find_tensors = name, updates, threads, find_tensors
        self.applied = False

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the changes take."""
        return sum(part.nbytes for update in self._updates for part in update.parts)

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
        with WRITE_LOCK:
            if self.applied:
                raise BaseMismatchError(f"{self._name}: is applied already: revert it first", "already_target")
            self._changed_tensors()
            if check:
                self._check(False)
            self.write(False, check)

    def revert_(self, *, check: bool = True) -> None:
        """Turn target into base in place, with the arguments and errors of :meth:`apply_`."""
        with WRITE_LOCK:
            if not self.applied:
                raise BaseMismatchError(f"{self._name}: is not applied, there is nothing to revert")
            self._changed_tensors()
            if check:
                self._check(True)
            self.write(True, check)

    def _check(self, applied: bool) -> None:
        """Raise BaseMismatchError unless each tensor has the target's content (if ``applied``) or the base's."""
        leaves_by_tensor = leaves_in_memory([update.flat for update in self._updates], self._threads)
        for update, leaves in zip(self._updates, leaves_by_tensor, strict=True):
            found, expected = tensor_digest(leaves), update.digest if applied else tensor_digest(update.before)
            if found != expected:
                state = "was changed since the patch was applied." if applied else "is not the base: is another patch applied?"
                raise BaseMismatchError(
                    f"{MODEL}: tensor {cut(update.name)} has the digest {found.hex()}, expected {expected.hex()}: it {state} "
                    "Nothing was written"
                )

    def write(self, back: bool, check: bool) -> None:
        """Apply all changes, or take them ``back``. What is there before is not checked; the result is, with ``check``."""
        arrays = self._changed_tensors()
        try:
            for update, leaves in self._update_all(back, check):
                found, expected = tensor_digest(leaves), tensor_digest(update.before) if back else update.digest
                if check and found != expected:
                    raise IntegrityError(
                        f"{MODEL}: tensor {cut(update.name)} came out with the digest {found.hex()}, expected {expected.hex()}: "
                        f"{self._name} is broken, or another thread wrote to the tensor; it was taken back"
                    )
        except BaseException:
            for update, part in self._done:
                _update_range(update, part, not back, False)
            raise
        finally:
            for array in arrays:
                if not isinstance(array, np.ndarray):  # as torch's own writes do: a backward pass through the old values then fails
                    torch.autograd.graph.increment_version(array)
        self.applied = not back

    def _changed_tensors(self) -> list[Any]:
        """The model's tensors that the patch changes; raises BaseMismatchError unless all have the memory that it was loaded for."""
        now, arrays = self._find_tensors(), []
        for update in self._updates:
            array, flat = now.get(update.name), update.flat
            if array is None or (len(flat) and memory_range(flat_bytes(array, f"{MODEL}: {cut(update.name)}")) != memory_range(flat)):
                raise BaseMismatchError(
                    f"{MODEL}: tensor {cut(update.name)} is not the one that {self._name} was loaded for: was the model cast, moved or "
                    "loaded anew? Load the patch again; nothing was written"
                )
            if update.parts:
                arrays.append(array)
        return arrays

    def _update_all(self, back: bool, check: bool) -> Iterator[tuple[TensorUpdate, list[bytes]]]:
        """Apply all changes, or take them back; yields each tensor with its leaves afterwards if they are to be checked."""
        self._done: list[tuple[TensorUpdate, RangeUpdate]] = []
        jobs = (partial(self._update_part, update, part, back, check) for update in self._updates for part in update.parts)
        threads = max(self._threads, 2)  # with at least two, Ctrl-C interrupts the calling thread between jobs, and never a job
        with closing(run_ordered(jobs, threads)) as results:
            for update in self._updates:
                if not isinstance(update.flat, np.ndarray):
                    for _ in update.parts:
                        next(results)
                    continue
                leaves = list(update.before)
                for part in update.parts:
                    changed = next(results)
                    leaves[part.start // BLOCK : part.start // BLOCK + len(changed)] = changed
                yield update, leaves
        on_devices = [update for update in self._updates if update.parts and not isinstance(update.flat, np.ndarray)]
        if check:  # all at once: a device hashes a thousand leaves in the time of one
            yield from zip(on_devices, leaves_in_memory([update.flat for update in on_devices], self._threads), strict=True)

    def _update_part(self, update: TensorUpdate, part: RangeUpdate, back: bool, check: bool) -> list[bytes]:
        """Update one range, and note that it is done; returns its new leaves if it is on the host."""
        leaves = _update_range(update, part, back, check)
        self._done.append((update, part))
        return leaves


def _update_range(update: TensorUpdate, part: RangeUpdate, back: bool, hashed: bool) -> list[bytes]:
    """Apply the changes of a range, or take them back; returns its new leaves if it is on the host and ``hashed``."""
    flat = update.flat[part.start : part.stop]
    if isinstance(flat, np.ndarray):
        return kernels.changes.move_run(flat, part.positions, part.zigzags, update.dtype, back, hashed)
    device.ops.apply_changes(device.ops.units_of(flat, update.dtype), part.positions, part.zigzags, update.dtype, back)
    return []


def leaves_in_memory(parts: Sequence[Bytes | torch.Tensor], threads: int) -> list[list[bytes]]:
    """Leaves of tensors in memory."""
    with hash_in_background(parts, threads) as leaves:
        return leaves()


@contextmanager
def hash_in_background(parts: Sequence[Bytes | torch.Tensor], threads: int) -> Iterator[Callable[[], list[list[bytes]]]]:
    """Hash tensors in memory on other threads; gives a function that waits for the leaves of all of them."""
    on_host = [part for part in parts if isinstance(part, np.ndarray)]
    on_devices = [part for part in parts if not isinstance(part, np.ndarray)]
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ckptdiff")
    try:
        futures = [pool.submit(kernels.leaves.leaves_of_all, batch) for batch in _batches(on_host)]

        def leaves() -> list[list[bytes]]:
            device_leaves = iter(_leaves_on_devices(on_devices))
            host_leaves = (leaf for future in futures for leaf in future.result())
            return [
                list(islice(host_leaves, block_count(len(part)))) if isinstance(part, np.ndarray) else next(device_leaves) for part in parts
            ]

        yield leaves
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _batches(parts: Iterable[Bytes]) -> Iterator[list[Bytes]]:
    """Tensors cut, or put together, to as many bytes as one job hashes."""
    batch: list[Bytes] = []
    for part in parts:
        for start in range(0, len(part), BYTES_PER_HASH_JOB):
            batch.append(part[start : start + BYTES_PER_HASH_JOB])
            if sum(map(len, batch)) >= BYTES_PER_HASH_JOB:
                yield batch
                batch = []
    if batch:
        yield batch


def _leaves_on_devices(parts: Sequence[torch.Tensor]) -> list[list[bytes]]:
    """Leaves of tensors that are not on the host."""
    leaves: dict[int, list[bytes]] = {}
    for where in {part.device for part in parts}:
        numbers = [k for k, part in enumerate(parts) if part.device == where]
        leaves |= dict(zip(numbers, device.leaves.leaf_digests([parts[k] for k in numbers]), strict=True))
    return [leaves[k] for k in range(len(parts))]
