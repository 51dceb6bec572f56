"""A patch decoded against tensors in memory: moves of their units, on and off in place."""

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
from ckptdiff.patching.torch_dtypes import address, flat_bytes

MODEL = "the model"
"""What messages call tensors in memory."""

RUN = 8 * BLOCK
"""Bytes that one job moves: threads hand Python's lock over between jobs, and may wait for it longer than they work."""

HASHED = 16 * BLOCK
"""Bytes that one job hashes."""


@dataclass(slots=True)
class Part:
    """Moves of a run of a tensor's units: ``positions`` in it, None if every unit has a move, and the zigzag of ulp distances.

    On the host a run is whole blocks, at most about :data:`RUN` bytes, ``start`` to ``stop``, and these are numpy's; elsewhere it is all
    of the tensor, and they are torch's.
    """

    start: int
    stop: int
    positions: Any
    zigzags: Any

    @property
    def nbytes(self) -> int:
        return (0 if self.positions is None else self.positions.nbytes) + self.zigzags.nbytes


@dataclass(slots=True)
class TensorUpdate:
    """What happens to one tensor in memory, if anything does.

    ``flat`` are its bytes, ``before`` the leaves without the patch, ``digest`` the tensor digest with it.
    """

    name: str
    dtype: Dtype
    flat: Bytes | torch.Tensor
    parts: list[Part]
    before: list[bytes]
    digest: bytes


WRITING = threading.RLock()
"""One thread at a time writes to models: two that switch patches of one would mix them."""


class LoadedPatch:
    """A patch decoded against the tensors of a model, to be switched on and off in place; made by :meth:`Patch.load`.

    ``find`` gives the model's tensors as they are now, by the names of ``moves``.
    """

    def __init__(self, name: str, moves: Sequence[TensorUpdate], threads: int, find: Callable[[], Mapping[str, Any]]) -> None:
        self._name, self._moves, self._threads, self._find = name, moves, threads, find
        self.applied = False

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return sum(part.nbytes for row in self._moves for part in row.parts)

    def apply_(self, *, check: bool = True) -> None:
        """Turn base into target in place.

        Args:
            check: compare the digests of all tensors before, and of what changed after; without, their content is believed.

        Raises:
            BaseMismatchError: the model does not have the base's content, or its tensors are others than when the patch was loaded; nothing
                was written. IntegrityError: the result is not the target; it was taken back.
        """
        with WRITING:
            if self.applied:
                raise BaseMismatchError(f"{self._name}: is applied already: revert it first", "already_target")
            self._arrays()
            if check:
                self._check(False)
            self.write(False, check)

    def revert_(self, *, check: bool = True) -> None:
        """Turn target into base in place; args and errors as of :meth:`apply_`."""
        with WRITING:
            if not self.applied:
                raise BaseMismatchError(f"{self._name}: is not applied, there is nothing to revert")
            self._arrays()
            if check:
                self._check(True)
            self.write(True, check)

    def _check(self, applied: bool) -> None:
        """Whether each tensor has the base's content, or the target's."""
        for row, leaves in zip(self._moves, leaves_in_memory([row.flat for row in self._moves], self._threads), strict=True):
            found, expected = tensor_digest(leaves), row.digest if applied else tensor_digest(row.before)
            if found != expected:
                state = "was changed since the patch was applied." if applied else "is not the base: is another patch applied?"
                raise BaseMismatchError(
                    f"{MODEL}: tensor {cut(row.name)} has the digest {found.hex()}, expected {expected.hex()}: it {state} "
                    "Nothing was written"
                )

    def write(self, back: bool, check: bool) -> None:
        """Move all units, or back; checks the result alone."""
        arrays = self._arrays()
        try:
            for row, leaves in self._move(back, check):
                found, expected = tensor_digest(leaves), tensor_digest(row.before) if back else row.digest
                if check and found != expected:
                    raise IntegrityError(
                        f"{MODEL}: tensor {cut(row.name)} came out with the digest {found.hex()}, expected {expected.hex()}: "
                        f"{self._name} is broken, or another thread wrote to the tensor; it was taken back"
                    )
        except BaseException:
            for row, part in self._done:
                _shift(row, part, not back, False)
            raise
        finally:
            for array in arrays:
                if not isinstance(array, np.ndarray):  # so that a backward pass through the old values fails, as after torch's own writes
                    torch.autograd.graph.increment_version(array)
        self.applied = not back

    def _arrays(self) -> list[Any]:
        """The model's tensors that move; raises BaseMismatchError unless they are the memory that the patch was loaded for."""
        now, arrays = self._find(), []
        for row in self._moves:
            array = now.get(row.name)
            if array is None or (len(row.flat) and address(flat_bytes(array, f"{MODEL}: {cut(row.name)}")) != address(row.flat)):
                raise BaseMismatchError(
                    f"{MODEL}: tensor {cut(row.name)} is not the one that {self._name} was loaded for: was the model cast, moved or loaded "
                    "anew? Load the patch again; nothing was written"
                )
            if row.parts:
                arrays.append(array)
        return arrays

    def _move(self, back: bool, check: bool) -> Iterator[tuple[TensorUpdate, list[bytes]]]:
        """Move all tensors; yields each with its leaves afterwards, if they are to be checked."""
        self._done: list[tuple[TensorUpdate, Part]] = []
        jobs = (partial(self._move_part, row, part, back, check) for row in self._moves for part in row.parts)
        threads = max(self._threads, 2)  # Ctrl-C stops the calling thread: between jobs, not in one
        with closing(run_ordered(jobs, threads)) as results:
            for row in self._moves:
                if not isinstance(row.flat, np.ndarray):
                    for _ in row.parts:
                        next(results)
                    continue
                leaves = list(row.before)
                for part in row.parts:
                    found = next(results)
                    leaves[part.start // BLOCK : part.start // BLOCK + len(found)] = found
                yield row, leaves
        elsewhere = [row for row in self._moves if row.parts and not isinstance(row.flat, np.ndarray)]
        if check:  # all at once: a device hashes a thousand leaves in the time of one
            yield from zip(elsewhere, leaves_in_memory([row.flat for row in elsewhere], self._threads), strict=True)

    def _move_part(self, row: TensorUpdate, part: Part, back: bool, check: bool) -> list[bytes]:
        """Move one run; returns its leaves on the host."""
        leaves = _shift(row, part, back, check)
        self._done.append((row, part))
        return leaves


def _shift(row: TensorUpdate, part: Part, back: bool, hashed: bool) -> list[bytes]:
    flat = row.flat[part.start : part.stop]
    if isinstance(flat, np.ndarray):
        return kernels.moves.move_run(flat, part.positions, part.zigzags, row.dtype, back, hashed)

    device.ops.move(device.ops.units_of(flat, row.dtype), part.positions, part.zigzags, row.dtype, back)
    return []


def leaves_in_memory(parts: Sequence[Bytes | torch.Tensor], threads: int) -> list[list[bytes]]:
    """Leaves of tensors in memory."""
    with hashing(parts, threads) as leaves:
        return leaves()


@contextmanager
def hashing(parts: Sequence[Bytes | torch.Tensor], threads: int) -> Iterator[Callable[[], list[list[bytes]]]]:
    """While threads hash tensors in memory; gives a function that waits for all leaves."""

    here = [part for part in parts if isinstance(part, np.ndarray)]
    there = [part for part in parts if not isinstance(part, np.ndarray)]
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ckptdiff")
    try:
        found = [pool.submit(kernels.leaves.leaves_of_all, batch) for batch in _batches(here)]

        def leaves() -> list[list[bytes]]:
            rows = iter(_leaves_elsewhere(there))
            flat = (leaf for future in found for leaf in future.result())
            return [list(islice(flat, block_count(len(part)))) if isinstance(part, np.ndarray) else next(rows) for part in parts]

        yield leaves
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _batches(parts: Iterable[Bytes]) -> Iterator[list[Bytes]]:
    """Tensors cut and gathered to what one job hashes."""
    batch: list[Bytes] = []
    for part in parts:
        for start in range(0, len(part), HASHED):
            batch.append(part[start : start + HASHED])
            if sum(map(len, batch)) >= HASHED:
                yield batch
                batch = []
    if batch:
        yield batch


def _leaves_elsewhere(parts: Sequence[torch.Tensor]) -> list[list[bytes]]:
    """Leaves of tensors on devices."""
    found: dict[int, list[bytes]] = {}
    for where in {part.device for part in parts}:
        numbers = [k for k, part in enumerate(parts) if part.device == where]
        found |= dict(zip(numbers, device.leaves.leaf_digests([parts[k] for k in numbers]), strict=True))
    return [found[k] for k in range(len(parts))]
