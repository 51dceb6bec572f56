"""A patch decoded against tensors in memory: where each target tensor goes, and which units change (spec section 10, steps 3 and 4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np

from ckptdiff import kernels
from ckptdiff.checkpoint.adapt import AdaptedBase
from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.errors import FormatError, UnsupportedError, cut
from ckptdiff.format.digests import BLOCK, tensor_digest, xxh128
from ckptdiff.format.dtypes import DTYPES, Bytes, Changes, Replacement
from ckptdiff.format.entry import Entry
from ckptdiff.io.parallel import Threads
from ckptdiff.lazy import torch
from ckptdiff.live.hashing import hash_in_background, leaves_in_memory
from ckptdiff.live.names import MODEL, base_contents, find_tensors, own_names, scope_of, tied_of
from ckptdiff.live.sparse_updates import unpack_sparse
from ckptdiff.live.switch import LoadedPatch, LoadedUpdates
from ckptdiff.live.updates import BYTES_PER_UPDATE_JOB, RangeUpdate, TensorUpdate, merge_blocks, on_device, range_update
from ckptdiff.live.writing import MemoryRange
from ckptdiff.patching.build import check_changed, unpack
from ckptdiff.patching.chain import check_chain
from ckptdiff.patching.memory import open_state
from ckptdiff.patching.patch import OpenPatch
from ckptdiff.patching.rebuild import Rebuilder
from ckptdiff.patching.recipes import AdaptedTensor, PatchedTensor, RebuildJob, Recipe
from ckptdiff.patching.torch_dtypes import memory_range


@dataclass(frozen=True, slots=True)
class Destination:
    """A target tensor, and the tensor in memory that is to become it."""

    entry: Entry
    recipe: Recipe
    """How to build the target tensor."""
    tensor: Tensor
    """The tensor in memory."""
    means: str | None
    """The codec whose blocks are the changes of ``tensor``; ``same`` if it stays as it is; None if the target must be built and compared
    with it."""


class _Block(NamedTuple):
    """A block of a tensor in memory."""

    destination: Destination
    start: int
    """Where it begins, in bytes of the tensor."""

    @property
    def nbytes(self) -> int:
        return min(BLOCK, self.destination.tensor.nbytes - self.start)


class Loader:
    """Decodes a patch against a model: the steps of :meth:`ckptdiff.Patch.load`, whose arguments it takes."""

    def __init__(self, patch: OpenPatch, base: Any, scope: str | None, threads: int) -> None:
        check_chain([patch])
        self.patch, self.threads = patch, threads
        self.scope = scope_of(patch, scope)
        entries = {name: entry for (scope_id, name), (_, entry) in patch.entries.items() if scope_id == self.scope}
        base_names = [base for entry in entries.values() for base in entry.base_names]
        names = [*base_names, *(name for _, name in patch.entries)]
        self.tied = tied_of(patch, entries)
        own = own_names(base, [*names, *self.tied], lambda: base_contents(patch, self.scope), threads)
        self.find_tensors = partial(find_tensors, base, own, set(names), self.tied)
        self.state = self.find_tensors()
        needed = {*names, *self.tied, *self.tied.values()}  # what else the model has may be what no patch takes
        self.base = open_state({name: array for name, array in self.state.items() if name in needed}, MODEL, set(names))
        self.rebuilder = Rebuilder(self.base, [patch], Threads(threads))
        self.tensors = next(iter(self.base.scopes.values()), {})

    def load(self) -> LoadedPatch:
        """Decode the patch, and check that the model has the base's content."""
        with self.rebuilder.explained():
            updates = self._updates(self._destinations())
        return LoadedUpdates(str(self.patch.path), updates, self.threads, self.find_tensors)

    @property
    def memory(self) -> list[MemoryRange]:
        """The memory of all the model's tensors."""
        return [memory_range(tensor.memory) for tensor in self.tensors.values() if tensor.memory is not None]

    def _destinations(self) -> list[Destination]:
        """Where every target tensor goes. Tensors that share memory count once; tied names with memory of their own count separately."""
        rows = [(name, file, entry) for (scope, name), (file, entry) in self.patch.entries.items() if scope == self.scope]
        uses = Counter(name for _, _, entry in rows for name in entry.base_names)
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
            destination = Destination(entry, recipe, tensor, _means(entry, recipe, tensor))
            first = by_memory.setdefault(_memory_key(tensor), destination)
            if first.tensor.name != tensor.name and first.recipe.digest != recipe.digest:
                raise UnsupportedError(
                    f"{MODEL}: {cut(first.tensor.name)} and {cut(tensor.name)} share memory, but the target of {self.patch.path} gives "
                    "them different contents: untie them first"
                )
        _check_overlaps(by_memory)
        return list(by_memory.values())

    def _tensor_for(self, name: str, entry: Entry, uses: Mapping[str, int], names: Collection[str]) -> Tensor | None:
        """The model's tensor of a target's name; or else its only base tensor, if no other entry uses that (it was renamed)."""
        old = entry.base_names[0] if len(entry.base_names) == 1 else None
        renamed = old is not None and uses[old] == 1 and old not in names
        return self.tensors.get(name) or (self.tensors[old] if renamed and old is not None else None)

    def _updates(self, destinations: Sequence[Destination]) -> list[TensorUpdate]:
        by_means: dict[str | None, list[Destination]] = {"same": [], "sparse": [], "context": [], None: []}
        for destination in destinations:
            by_means[destination.means].append(destination)
        return [
            *self._unchanged(by_means["same"]),
            *self._from_sparse(by_means["sparse"]),
            *self._from_context(by_means["context"]),
            *self._from_content(by_means[None]),
        ]

    def _unchanged(self, destinations: Sequence[Destination]) -> Iterator[TensorUpdate]:
        """Tensors that stay as they are: it is only checked that they are the base's."""
        before = leaves_in_memory([_memory(destination) for destination in destinations], self.threads)
        for destination, leaves in zip(destinations, before, strict=True):
            self._check_base(destination, leaves)
            yield _tensor_update(destination, (), leaves)

    def _from_sparse(self, destinations: Sequence[Destination]) -> Iterator[TensorUpdate]:
        """Unpack the changes on this thread, many blocks at once, while others hash."""
        in_order = sorted(destinations, key=lambda destination: destination.entry.dtype)
        with hash_in_background([_memory(destination) for destination in in_order], max(self.threads - 1, 1)) as leaves:
            updates = list(unpack_sparse(map(_patched, in_order)))
            before = leaves()
        for destination, row in zip(in_order, before, strict=True):
            self._check_base(destination, row)
        for destination, parts, row in zip(in_order, updates, before, strict=True):
            yield _tensor_update(destination, parts, row)

    def _from_context(self, destinations: Sequence[Destination]) -> Iterator[TensorUpdate]:
        """Hash and unpack each block on one thread, since the codec ``context`` reads the base's block too."""

        def work(block: _Block) -> tuple[bytes, Changes | FormatError]:
            data = block.destination.tensor.view(block.start, block.start + BLOCK, "base")
            try:
                return xxh128(data), self._unpack(block.destination, block.start, data)
            except FormatError as error:
                return xxh128(data), error  # most likely the base is wrong, which is found first

        jobs = (_Block(destination, start) for destination in destinations for start in range(0, destination.tensor.nbytes, BLOCK))
        with closing(Threads(self.threads, BLOCK)(work, jobs)) as results:
            for destination in destinations:
                rows = [next(results) for _ in range(0, destination.tensor.nbytes, BLOCK)]
                before, blocks = [leaf for leaf, _ in rows], list[Changes]()
                self._check_base(destination, before)
                for _, changes in rows:
                    if isinstance(changes, FormatError):
                        raise changes
                    blocks.append(changes)
                yield self._from_blocks(destination, blocks, before)

    def _from_content(self, destinations: Sequence[Destination]) -> Iterator[TensorUpdate]:
        """Build the whole content of tensors, and compare it with what is in memory."""

        def sink(job: RebuildJob, new: Bytes) -> RangeUpdate | None:
            tensor = destinations[job.tensor].tensor
            stop, dtype = job.start + len(new), DTYPES[tensor.dtype]
            positions, zigzags = kernels.changes.changes_of(tensor.view(job.start, stop, "old"), new, dtype)
            return range_update(job.start, stop, positions.copy(), zigzags.copy(), dtype)

        parts: list[RangeUpdate | None] = []
        before = iter(leaves_in_memory([_memory(destination) for destination in destinations], self.threads))
        with closing(self.rebuilder.rebuild([destination.recipe for destination in destinations], sink)) as results:
            for job, part in results:
                parts.append(part)
                if job.last:
                    yield _tensor_update(destinations[job.tensor], parts, next(before))
                    parts = []

    def _check_base(self, destination: Destination, leaves: list[bytes]) -> None:
        """Raise BaseMismatchError unless a tensor with these leaves has the digest of the patch's base."""
        base, found = _base(destination.recipe), tensor_digest(leaves)
        assert isinstance(base, AdaptedTensor)
        if found != base.digest:
            raise base.mismatch(found)

    def _unpack(self, destination: Destination, start: int, base: Bytes) -> Changes:
        """The changes of the block that begins at byte ``start``, given the block's bytes in the base."""
        recipe, block = _patched(destination), start // BLOCK
        (coded,) = recipe.file.payloads.read_blocks(recipe.entry, block, block + 1)
        change = unpack(recipe, block, coded, base, min(BLOCK, destination.tensor.nbytes - start))
        assert not isinstance(change, Replacement)  # tensors coded by raw are compared with their whole content
        return change[0].copy(), change[1].copy()

    def _from_blocks(self, destination: Destination, blocks: Sequence[Changes], before: list[bytes]) -> TensorUpdate:
        """A tensor's update from the changes of all its blocks."""
        check_changed(_patched(destination), sum(len(positions) for positions, _ in blocks))
        dtype, size = DTYPES[destination.entry.dtype], destination.tensor.nbytes
        parts = [
            merge_blocks(
                start, min(start + BYTES_PER_UPDATE_JOB, size), blocks[start // BLOCK : (start + BYTES_PER_UPDATE_JOB) // BLOCK], dtype
            )
            for start in range(0, size, BYTES_PER_UPDATE_JOB)
        ]
        return _tensor_update(destination, parts, before)


def _means(entry: Entry, recipe: Recipe, tensor: Tensor) -> str | None:
    """How to find what changes in a tensor in memory (:class:`Destination`)."""
    base = _base(recipe)
    if not (isinstance(base, AdaptedTensor) and isinstance(base.source, AdaptedBase) and base.source.whole is tensor):
        return None
    if isinstance(recipe, AdaptedTensor):
        return "same"
    return entry.codec if entry.kind == "delta" and entry.codec != "raw" else None


def _base(recipe: Recipe) -> Recipe | None:
    """The adapted base of what is patched; what is not patched is one itself."""
    return recipe.base if isinstance(recipe, PatchedTensor) else recipe


def _patched(destination: Destination) -> PatchedTensor:
    """The recipe of a tensor that an entry with a payload gives."""
    assert isinstance(destination.recipe, PatchedTensor)
    return destination.recipe


def _memory(destination: Destination) -> Bytes | torch.Tensor:
    """The memory of a destination's tensor, as bytes."""
    return cast("Bytes | torch.Tensor", destination.tensor.memory)


def _tensor_update(destination: Destination, updates: Sequence[RangeUpdate | None], before: list[bytes]) -> TensorUpdate:
    """A tensor's update, with its changes on the tensor's device."""
    flat, dtype, name = _memory(destination), DTYPES[destination.entry.dtype], destination.tensor.name
    parts = [part for part in updates if part is not None]
    if isinstance(flat, np.ndarray):
        if parts and not flat.flags.writeable:
            raise UnsupportedError(f"{MODEL}: {name}: is read-only memory: give a copy of it")
    elif parts:
        parts = [on_device(flat, parts, dtype)]
    return TensorUpdate(name, dtype, flat, parts, before, destination.recipe.digest)


def _memory_key(tensor: Tensor) -> tuple[str, int, int]:
    """Device, address and size of a tensor's memory: the same for two names of one tensor. Empty tensors count each for itself."""
    memory = tensor.memory if tensor.nbytes else None
    return memory_range(memory) if memory is not None else (tensor.name, 0, 0)


def _check_overlaps(destinations: Mapping[tuple[str, int, int], Destination]) -> None:
    """Raise UnsupportedError if two tensors share a part of their memory: an update of one would change the other."""
    rows = sorted(destinations.items(), key=lambda row: row[0])
    end, last = ("", 0), ""
    for (where, begin, size), destination in rows:
        if size and end > (where, begin) and end[0] == where:
            raise UnsupportedError(f"{MODEL}: {last} and {destination.tensor.name} share a part of their memory: give a copy of one")
        end, last = max(end, (where, begin + size)), destination.tensor.name
