"""Checkpoint tensors that an engine's loader is given: the bytes of a checkpoint, or ulp distances in their place."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckptdiff.checkpoint.contents import Checkpoint, Tensor
from ckptdiff.checkpoint.reader import open_checkpoint
from ckptdiff.errors import UnsupportedError, cut
from ckptdiff.format.digests import BLOCK
from ckptdiff.format.dtypes import DTYPES, Bytes, Dtype, Units
from ckptdiff.format.entry import Entry
from ckptdiff.format.patch_file import PatchFile
from ckptdiff.lazy import torch
from ckptdiff.live.changes import Change, Positions, changes_of, coded_changes
from ckptdiff.live.patch import Patch
from ckptdiff.live.sparse_updates import unpack_sparse
from ckptdiff.live.updates import BYTES_PER_UPDATE_JOB, RangeUpdate, range_update
from ckptdiff.patching.memory import open_state, state_of
from ckptdiff.patching.recipes import PatchedTensor
from ckptdiff.patching.torch_dtypes import flat_bytes, new_tensor


@dataclass(frozen=True, slots=True)
class Carrier:
    """A tensor as a loader takes it, whose bits are those of a checkpoint, or zigzags of ulp distances (0: unchanged)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    """In elements."""
    tensor: torch.Tensor
    """On the host, of the checkpoint's dtype."""


def _new(name: str, dtype: str, shape: tuple[int, ...]) -> tuple[Carrier, Bytes]:
    """A carrier to be filled, and its memory."""
    tensor = new_tensor(dtype, shape, cut(name))
    return Carrier(name, dtype, shape, tensor), np.asarray(flat_bytes(tensor, name))


@contextmanager
def open_weights(base: Any) -> Iterator[Checkpoint]:
    """The weights of one model: a path, an id on the Hub, or a state dict.

    Raises:
        UnsupportedError: it holds several models (scopes). CheckpointError, HubError: it cannot be read.
    """
    if not isinstance(base, (str, os.PathLike)):
        yield open_state(state_of(base, "the base"), "the base")
        return
    with open_checkpoint(base) as opened:
        if len(opened.scopes) != 1:
            raise UnsupportedError(f"{base}: has the scopes {cut(', '.join(opened.scopes))}, expected one: an engine serves one model")
        yield opened


def weights_of(checkpoint: Checkpoint, but: Collection[str] = ()) -> Iterator[tuple[Tensor, Carrier]]:
    """Each tensor of a checkpoint of one scope, ``but`` those of these names, read."""
    for tensor in next(iter(checkpoint.scopes.values()), {}).values():
        if tensor.name in but:
            continue
        carrier, memory = _new(tensor.name, tensor.dtype, tensor.shape)
        for start in range(0, tensor.nbytes, BLOCK):
            tensor.readinto(start, memory[start : start + BLOCK])
        yield tensor, carrier


class Distances:
    """Ulp distances of what a patch changes, tensor by tensor; they may be asked for again and again.

    Args:
        patch: the patch, whose target is one model.
        base: the checkpoint that it was made from, where ``sparse`` does not code all tensors: only the base tells then what changes.
        threads: how many to use, with a base.

    Raises:
        UnsupportedError: the patch has several scopes, or needs a base and has none.
    """

    def __init__(self, patch: Patch, base: Any, threads: int) -> None:
        self.patch, self._base, self._threads = patch, base, threads
        self.rows = {name: row for (_, name), row in patch.opened.entries.items()}
        if len(self.rows) != len(patch.opened.entries):
            raise UnsupportedError(f"{patch.opened.path}: has several models: an engine serves one")
        self.changed = [name for name, (_, entry) in self.rows.items() if entry.kind != "same" and entry.units]
        unclear = next((self.rows[name][1] for name in self.changed if not _is_told(self.rows[name][1])), None)
        if unclear is not None and base is None:
            raise UnsupportedError(
                f"{patch.opened.path}: tensor {cut(unclear.name)}: is {unclear.kind}, coded by {unclear.codec}: only the base tells what "
                "changes: give base=, the checkpoint that the patch was made from, or publish with the codec sparse"
            )

    def entries(self) -> Iterable[Entry]:
        """The entries of the patch's table."""
        return (entry for _, entry in self.rows.values())

    def carriers(self, names: Collection[str] | None = None) -> Iterator[Carrier]:
        """What changes, or of that the tensors of these names."""
        wanted = [name for name in self.changed if names is None or name in names]
        for name in wanted:
            if _is_told(self.rows[name][1]):
                yield _decoded(*self.rows[name])
        left = [name for name in wanted if not _is_told(self.rows[name][1])]
        if left:
            yield from map(_of_change, changes_of(self.patch.opened, left, self._base, self._threads))

    def ranges(self, names: Collection[str]) -> Iterator[tuple[str, list[RangeUpdate]]]:
        """What changes in tensors of these names, as updates of runs of blocks of each, which need no memory for the whole tensor."""
        told = [name for name in self.changed if name in names and _is_told(self.rows[name][1])]
        for name, parts in zip(told, unpack_sparse([PatchedTensor(*self.rows[name], None) for name in told]), strict=True):
            yield name, [part for part in parts if part is not None]
        left = [name for name in self.changed if name in names and not _is_told(self.rows[name][1])]
        for change in changes_of(self.patch.opened, left, self._base, self._threads) if left else ():
            dtype = DTYPES[change.dtype]
            zigzags = _zigzags(change, dtype.carrier)
            yield change.name, list(ranges_of(change.positions, zigzags, self.rows[change.name][1].nbytes, dtype))


class GivenDistances:
    """As :class:`Distances`, of changes that the caller has."""

    def __init__(self, changes: Sequence[Change]) -> None:
        self._changes = {change.name: change for change in changes}
        self.changed = list(self._changes)

    def carriers(self, names: Collection[str] | None = None) -> Iterator[Carrier]:
        """What changes, or of that the tensors of these names."""
        return (_of_change(change) for name, change in self._changes.items() if names is None or name in names)


def _decoded(file: PatchFile, entry: Entry) -> Carrier:
    """The distances of a ``sparse`` entry."""
    carrier, memory = _new(entry.name, entry.dtype, entry.shape)
    memory[:] = 0
    units = memory.view(DTYPES[entry.dtype].unit)
    for start, positions, zigzags in coded_changes(file, entry):
        units[start : start + BLOCK // units.itemsize][positions] = zigzags
    return carrier


def ranges_of(positions: Positions, zigzags: Units, nbytes: int, dtype: Dtype) -> Iterator[RangeUpdate]:
    """The changes of a tensor of so many bytes, given by rising positions, as updates of runs of blocks."""
    for start in range(0, nbytes, BYTES_PER_UPDATE_JOB):
        stop = min(start + BYTES_PER_UPDATE_JOB, nbytes)
        first, last = np.searchsorted(positions, (start // dtype.carrier, stop // dtype.carrier))
        in_range = (positions[first:last] - start // dtype.carrier).astype(np.int32)
        update = range_update(start, stop, in_range, zigzags[first:last], dtype)
        if update is not None:
            yield update


def reversed_range(part: RangeUpdate) -> RangeUpdate:
    """The update that takes another one back: the zigzags of the opposite distances, modulo 2^m (spec 7.2)."""
    zigzags = part.zigzags
    top = zigzags.dtype.type(np.iinfo(zigzags.dtype).max)
    opposite = np.where(zigzags & 1, zigzags + (zigzags != top), zigzags - (zigzags != 0)).astype(zigzags.dtype)
    return RangeUpdate(part.start, part.stop, part.positions, opposite)


def _is_told(entry: Entry) -> bool:
    """Whether an entry alone tells what changes."""
    return entry.kind == "delta" and entry.codec == "sparse"


def _of_change(change: Change) -> Carrier:
    carrier, memory = _new(change.name, change.dtype, change.shape)
    memory[:] = 0
    memory.view(DTYPES[change.dtype].unit)[change.positions] = _zigzags(change, DTYPES[change.dtype].carrier)
    return carrier


def _zigzags(change: Change, width: int) -> Units:
    """The zigzags (spec 7.2) of a change's distances."""
    distances = change.distances
    return ((distances << 1) ^ (distances >> 63)).astype(f"<u{width}")
