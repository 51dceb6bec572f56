"""A patch decoded against tensors in memory: where each target tensor goes, and which units change (spec section 10, steps 3 and 4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ckptdiff import kernels
from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.codecs import context, sparse
from ckptdiff.errors import BaseMismatchError, FormatError, IntegrityError, UnsupportedError, cut
from ckptdiff.format.digests import BLOCK, tensor_digest, xxh128
from ckptdiff.format.dtypes import DTYPES, Bytes, Changes
from ckptdiff.format.entry import Entry
from ckptdiff.io.parallel import no_progress, run_ordered
from ckptdiff.lazy import torch
from ckptdiff.live.hashing import hash_in_background, leaves_in_memory
from ckptdiff.live.names import MODEL, find_tensors, scope_of
from ckptdiff.live.switch import LoadedPatch
from ckptdiff.live.updates import BYTES_PER_UPDATE_JOB, RangeUpdate, TensorUpdate, merge_blocks, on_device, range_update
from ckptdiff.patching.chain import check_chain
from ckptdiff.patching.encode import view_range
from ckptdiff.patching.memory import MemoryFile, open_state
from ckptdiff.patching.patch import OpenPatch
from ckptdiff.patching.rebuild import Rebuilder
from ckptdiff.patching.recipes import BaseTensor, PatchedTensor, Recipe, check_changed, describe_mismatch, ranges
from ckptdiff.patching.torch_dtypes import memory_range


@dataclass(frozen=True, slots=True)
class Destination:
    """A target tensor, and the tensor in memory that is to become it."""

    entry: Entry
    recipe: Recipe
    """How to build the target tensor."""
    tensor: Tensor
    """The tensor in memory."""
    codec: str | None
    """The codec whose blocks are the changes of ``tensor``; None if the target must be built and compared with it."""


class Loader:
    """Decodes a patch against a model: the steps of :meth:`ckptdiff.Patch.load`, whose arguments it takes."""

    def __init__(self, patch: OpenPatch, base: Any, scope: str | None, threads: int) -> None:
        check_chain([patch])
        self.patch, self.threads = patch, threads
        self.scope = scope_of(patch, scope)
        base_names = [e.base_name or name for (scope_id, name), (_, e) in patch.entries.items() if scope_id == self.scope]
        names = [*base_names, *(name for _, name in patch.entries)]
        entries = {name for scope_id, name in patch.entries if scope_id == self.scope}
        self.tied = {name: kept for name, kept in patch.tied.items() if kept in entries and name not in entries}
        self.find_tensors = partial(find_tensors, base, names, self.tied)
        self.base = open_state(self.find_tensors(), MODEL, set(names))
        self.rebuilder = Rebuilder(self.base, [patch], threads, no_progress)
        self.tensors = next(iter(self.base.scopes.values()), {})

    def load(self) -> LoadedPatch:
        """Decode the patch, and check that the model has the base's content."""
        destinations = self._destinations()
        try:
            updates = self._updates(destinations)
        except (FormatError, IntegrityError, BaseMismatchError):
            self.rebuilder.raise_if_wrong_base([destination.recipe for destination in destinations])
            raise
        return LoadedPatch(str(self.patch.path), updates, self.threads, self.find_tensors)

    def _destinations(self) -> list[Destination]:
        """Where every target tensor goes. Tensors that share memory count once; tied names with memory of their own count separately."""
        rows = [(name, file, entry) for (scope, name), (file, entry) in self.patch.entries.items() if scope == self.scope]
        uses = Counter(entry.base_name for _, _, entry in rows)
        names = {entry.name for _, _, entry in rows}
        rows += [(name, *self.patch.entries[self.scope, kept]) for name, kept in self.tied.items() if name in self.tensors]
        by_memory: dict[tuple[str, int, int], Destination] = {}
        for name, file, entry in rows:
            recipe = self.rebuilder.recipe(0, file, entry)
            tensor = self._tensor_for(name, entry, uses, names)
            if tensor is None or (tensor.dtype, tensor.shape) != (entry.dtype, entry.shape):
                found = f"{MODEL} has it as {tensor.dtype} {list(tensor.shape)}" if tensor else f"{MODEL} has no such tensor"
                raise UnsupportedError(
                    f"{self.patch.path}: its target has the tensor {cut(name)}, {entry.dtype} {cut(list(entry.shape))}; {found}: "
                    "it cannot be written in place; rebuild the target with ckptdiff.load_target or ckptdiff apply"
                )
            simple = isinstance(recipe, PatchedTensor) and entry.kind == "delta" and not entry.adapted and tensor.name == entry.base_name
            destination = Destination(entry, recipe, tensor, entry.codec if simple and entry.codec != "raw" else None)
            first = by_memory.setdefault(_memory_key(tensor), destination)
            if first.tensor.name != tensor.name and first.recipe.digest != recipe.digest:
                raise UnsupportedError(
                    f"{MODEL}: {cut(first.tensor.name)} and {cut(tensor.name)} share memory, but the target of {self.patch.path} gives "
                    "them different contents: untie them first"
                )
        _check_overlaps(by_memory)
        return list(by_memory.values())

    def _tensor_for(self, name: str, entry: Entry, uses: Mapping[str | None, int], names: Collection[str]) -> Tensor | None:
        """The model's tensor of a target's name; or else its base tensor, if no other entry uses that (it was renamed)."""
        old = entry.base_name
        renamed = old is not None and uses[old] == 1 and old not in names
        return self.tensors.get(name) or (self.tensors[old] if renamed and old is not None else None)

    def _updates(self, destinations: Sequence[Destination]) -> list[TensorUpdate]:
        by_codec: dict[str | None, list[Destination]] = {"sparse": [], "context": [], None: []}
        for destination in destinations:
            by_codec[destination.codec].append(destination)
        return [*self._from_sparse(by_codec["sparse"]), *self._from_context(by_codec["context"]), *self._from_content(by_codec[None])]

    def _from_sparse(self, destinations: Sequence[Destination]) -> list[TensorUpdate]:
        """Unpack the changes on this thread while others hash: it is many small steps, for which threads would wait for each other."""
        with hash_in_background([self._memory(destination) for destination in destinations], max(self.threads - 1, 1)) as leaves:
            blocks_by_tensor = [
                [self._unpack(destination, start) for start in range(0, destination.tensor.nbytes, BLOCK)] for destination in destinations
            ]
            before = leaves()
        for destination, row in zip(destinations, before, strict=True):
            self._check_base(destination, row)
        return [
            self._from_blocks(destination, blocks, row)
            for destination, blocks, row in zip(destinations, blocks_by_tensor, before, strict=True)
        ]

    def _from_context(self, destinations: Sequence[Destination]) -> Iterator[TensorUpdate]:
        """Hash and unpack each block on one thread, since the codec ``context`` reads the base's block too."""

        def job(destination: Destination, start: int) -> tuple[bytes, Changes | None, str]:
            data = view_range(destination.tensor, start, start + BLOCK, "base")
            try:
                return xxh128(data), self._unpack(destination, start), ""
            except FormatError as error:
                return xxh128(data), None, str(error)  # most likely the base is wrong, which the caller finds

        jobs = (partial(job, destination, start) for destination in destinations for start in range(0, destination.tensor.nbytes, BLOCK))
        with closing(run_ordered(jobs, self.threads)) as results:
            for destination in destinations:
                rows = [next(results) for _ in range(0, destination.tensor.nbytes, BLOCK)]
                before = [leaf for leaf, _, _ in rows]
                self._check_base(destination, before)
                for _, _, error in rows:
                    if error:
                        raise FormatError(error)
                yield self._from_blocks(destination, [changes for _, changes, _ in rows if changes], before)

    def _from_content(self, destinations: Sequence[Destination]) -> Iterator[TensorUpdate]:
        """Build the whole content of tensors, and compare it with what is in memory."""
        jobs = (
            partial(self._changes, destination, start, stop, last)
            for destination in destinations
            for start, stop, last in ranges(destination.recipe)
        )
        parts: list[RangeUpdate | None] = []
        before = iter(leaves_in_memory([self._memory(destination) for destination in destinations], self.threads))
        with closing(run_ordered(jobs, self.threads)) as results:
            for destination, part, last in results:
                parts.append(part)
                if last:
                    self.rebuilder.check(destination.recipe)
                    yield self._tensor_update(destination, parts, next(before))
                    parts = []

    def _memory(self, destination: Destination) -> Bytes | torch.Tensor:
        """The memory of a destination's tensor, as bytes."""
        source = destination.tensor.source
        assert isinstance(source, MemoryFile)
        return source.view(destination.tensor.offset, destination.tensor.nbytes)

    def _check_base(self, destination: Destination, leaves: list[bytes]) -> None:
        """Raise BaseMismatchError unless a tensor with these leaves has the digest of the patch's base."""
        recipe, found = destination.recipe, tensor_digest(leaves)
        assert isinstance(recipe, PatchedTensor) and isinstance(recipe.base, BaseTensor)
        if found != recipe.base.digest:
            raise self.rebuilder.wrong_base(self.patch, describe_mismatch(recipe.base, found))

    def _unpack(self, destination: Destination, start: int) -> Changes:
        """The changes of the block that begins at byte ``start``."""
        recipe, entry, block = destination.recipe, destination.entry, start // BLOCK
        assert isinstance(recipe, PatchedTensor)
        dtype, stop = DTYPES[entry.dtype], min(start + BLOCK, destination.tensor.nbytes)
        (coded,) = recipe.file.read_blocks(entry, block, block + 1)
        try:
            if destination.codec == "sparse":
                positions, zigzags = sparse.unpack(coded, (stop - start) // dtype.carrier, dtype)
            else:
                positions, zigzags = context.unpack(coded, view_range(destination.tensor, start, stop, "base"), dtype)
                positions = positions.copy()  # the codec gives a scratch array
        except ValueError as error:
            raise FormatError(f"{recipe.file.source.name}: tensor {cut(entry.name)}, block {block}: {error}") from None
        recipe.changed[block] = len(positions)
        return positions, zigzags

    def _from_blocks(self, destination: Destination, blocks: Sequence[Changes], before: list[bytes]) -> TensorUpdate:
        """A tensor's update from the changes of all its blocks."""
        assert isinstance(destination.recipe, PatchedTensor)
        check_changed(destination.recipe)
        dtype, size = DTYPES[destination.entry.dtype], destination.tensor.nbytes
        parts = [
            merge_blocks(
                start, min(start + BYTES_PER_UPDATE_JOB, size), blocks[start // BLOCK : (start + BYTES_PER_UPDATE_JOB) // BLOCK], dtype
            )
            for start in range(0, size, BYTES_PER_UPDATE_JOB)
        ]
        return self._tensor_update(destination, parts, before)

    def _changes(self, destination: Destination, start: int, stop: int, last: bool) -> tuple[Destination, RangeUpdate | None, bool]:
        """Build a range of a tensor and find what changes there; None if the tensor in memory is the one that is built."""
        dtype, stop = DTYPES[destination.entry.dtype], min(stop, destination.tensor.nbytes)
        new = destination.recipe.build(start, stop)
        if isinstance(destination.recipe, BaseTensor) and destination.recipe.tensor is destination.tensor:
            return destination, None, last
        positions, zigzags = kernels.changes.changes_of(view_range(destination.tensor, start, stop, "old"), new, dtype)
        return destination, range_update(start, stop, positions.copy(), zigzags.copy(), dtype), last

    def _tensor_update(self, destination: Destination, updates: Sequence[RangeUpdate | None], before: list[bytes]) -> TensorUpdate:
        """A tensor's update, with its changes on the tensor's device."""
        flat, dtype, name = self._memory(destination), DTYPES[destination.entry.dtype], destination.tensor.name
        parts = [part for part in updates if part is not None]
        if isinstance(flat, np.ndarray):
            if parts and not flat.flags.writeable:
                raise UnsupportedError(f"{MODEL}: {name}: is read-only memory: give a copy of it")
        elif parts:
            parts = [on_device(flat, parts, dtype)]
        return TensorUpdate(name, dtype, flat, parts, before, destination.recipe.digest)


def _memory_key(tensor: Tensor) -> tuple[str, int, int]:
    """Device, address and size of a tensor's memory: the same for two names of one tensor. Empty tensors count each for itself."""
    assert isinstance(tensor.source, MemoryFile)
    return memory_range(tensor.source.view(tensor.offset, tensor.nbytes)) if tensor.nbytes else (tensor.name, 0, 0)


def _check_overlaps(destinations: Mapping[tuple[str, int, int], Destination]) -> None:
    """Raise UnsupportedError if two tensors share a part of their memory: an update of one would change the other."""
    rows = sorted(destinations.items(), key=lambda row: row[0])
    end, last = ("", 0), ""
    for (where, begin, size), destination in rows:
        if size and end > (where, begin) and end[0] == where:
            raise UnsupportedError(f"{MODEL}: {last} and {destination.tensor.name} share a part of their memory: give a copy of one")
        end, last = max(end, (where, begin + size)), destination.tensor.name
