"""How a patch is decoded against tensors in memory: which goes where, and what moves there (spec section 10, steps 3 and 4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ckptdiff import device, kernels
from ckptdiff.checkpoint.pairing import strip_prefixes
from ckptdiff.checkpoint.reader import Tensor
from ckptdiff.codecs import context, sparse
from ckptdiff.errors import BaseMismatchError, FormatError, IntegrityError, UnsupportedError, cut
from ckptdiff.format.digests import BLOCK, tensor_digest, xxh128
from ckptdiff.format.dtypes import DTYPES, Bytes, Changes, Dtype, Units
from ckptdiff.format.entry import Entry
from ckptdiff.io.parallel import no_progress, run_ordered
from ckptdiff.lazy import torch
from ckptdiff.live.switch import MODEL, RUN, LoadedPatch, Part, TensorUpdate, hashing, leaves_in_memory
from ckptdiff.patching.encode import look
from ckptdiff.patching.memory import MemoryFile, State, open_state, state_of
from ckptdiff.patching.patch import OpenPatch
from ckptdiff.patching.rebuild import Rebuilder, check_chain
from ckptdiff.patching.recipes import BaseTensor, PatchedTensor, Recipe, check_changed, ranges, tensor_differs
from ckptdiff.patching.torch_dtypes import address


@dataclass(frozen=True, slots=True)
class Destination:
    """A target tensor, what builds it, and the tensor in memory that it goes to.

    ``codec`` is that of a difference from what is there, None where the whole content must be built.
    """

    entry: Entry
    recipe: Recipe
    tensor: Tensor
    codec: str | None


class Loader:
    """The steps of one :meth:`Patch.load`."""

    def __init__(self, patch: OpenPatch, base: Any, scope: str | None, threads: int) -> None:
        check_chain([patch])
        self.patch, self.threads = patch, threads
        self.scope = scope_of(patch, scope)
        wanted = [e.base_name or name for (found, name), (_, e) in patch.entries.items() if found == self.scope]
        names = [*wanted, *(name for _, name in patch.entries)]
        entries = {name for found, name in patch.entries if found == self.scope}
        self.tied = {name: kept for name, kept in patch.tied.items() if kept in entries and name not in entries}
        self.find = partial(_find, base, names, self.tied)
        self.base = open_state(self.find(), MODEL, set(names))
        self.rebuilder = Rebuilder(self.base, [patch], threads, no_progress)
        self.tensors = next(iter(self.base.scopes.values()), {})

    def load(self) -> LoadedPatch:
        places = self._places()
        try:
            moves = self._moves(places)
        except (FormatError, IntegrityError, BaseMismatchError):
            self.rebuilder.explain([place.recipe for place in places])
            raise
        return LoadedPatch(str(self.patch.path), moves, self.threads, self.find)

    def _places(self) -> list[Destination]:
        """Where every target tensor goes; those that share memory once, those of further names that do not to each of them."""
        rows = [(name, file, entry) for (scope, name), (file, entry) in self.patch.entries.items() if scope == self.scope]
        uses = Counter(entry.base_name for _, _, entry in rows)
        names = {entry.name for _, _, entry in rows}
        rows += [(name, *self.patch.entries[self.scope, kept]) for name, kept in self.tied.items() if name in self.tensors]
        found: dict[tuple[str, int, int], Destination] = {}
        for name, file, entry in rows:
            recipe = self.rebuilder.recipe(0, file, entry)
            old = entry.base_name
            alone = old is not None and uses[old] == 1 and old not in names
            tensor = self.tensors.get(name) or (self.tensors[old] if alone and old is not None else None)
            if tensor is None or (tensor.dtype, tensor.shape) != (entry.dtype, entry.shape):
                is_there = f"{MODEL} has it as {tensor.dtype} {list(tensor.shape)}" if tensor else f"{MODEL} has no such tensor"
                raise UnsupportedError(
                    f"{self.patch.path}: its target has the tensor {cut(name)}, {entry.dtype} {cut(list(entry.shape))}; {is_there}: "
                    "it cannot be written in place; rebuild the target with ckptdiff.load_target or ckptdiff apply"
                )
            simple = isinstance(recipe, PatchedTensor) and entry.kind == "delta" and not entry.adapted and tensor.name == old
            place = Destination(entry, recipe, tensor, entry.codec if simple and entry.codec != "raw" else None)
            first = found.setdefault(_memory(tensor), place)
            if first.tensor.name != tensor.name and first.recipe.digest != recipe.digest:
                raise UnsupportedError(
                    f"{MODEL}: {cut(first.tensor.name)} and {cut(tensor.name)} share memory, but the target of {self.patch.path} has two "
                    "contents for them: untie them first"
                )
        _check_overlaps(found)
        return list(found.values())

    def _moves(self, places: Sequence[Destination]) -> list[TensorUpdate]:
        by_codec: dict[str | None, list[Destination]] = {"sparse": [], "context": [], None: []}
        for place in places:
            by_codec[place.codec].append(place)
        return [*self._from_sparse(by_codec["sparse"]), *self._from_context(by_codec["context"]), *self._from_rest(by_codec[None])]

    def _from_sparse(self, places: Sequence[Destination]) -> list[TensorUpdate]:
        """Other threads hash while this one unpacks: unpacking is many small steps, which threads would take from each other."""
        with hashing([self._memory(place) for place in places], max(self.threads - 1, 1)) as leaves:
            found = [[self._unpack(place, start) for start in range(0, place.tensor.nbytes, BLOCK)] for place in places]
            before = leaves()
        for place, row in zip(places, before, strict=True):
            self._check_base(place, row)
        return [self._finish(place, blocks, row) for place, blocks, row in zip(places, found, before, strict=True)]

    def _from_context(self, places: Sequence[Destination]) -> Iterator[TensorUpdate]:
        """Each block is hashed and unpacked by one thread."""

        def job(place: Destination, start: int) -> tuple[bytes, Changes | None, str]:
            data = look(place.tensor, start, start + BLOCK, "base")
            try:
                return xxh128(data), self._unpack(place, start), ""
            except FormatError as error:
                return xxh128(data), None, str(error)  # of a wrong base, most likely

        jobs = (partial(job, place, start) for place in places for start in range(0, place.tensor.nbytes, BLOCK))
        with closing(run_ordered(jobs, self.threads)) as results:
            for place in places:
                rows = [next(results) for _ in range(0, place.tensor.nbytes, BLOCK)]
                before = [leaf for leaf, _, _ in rows]
                self._check_base(place, before)
                for _, _, error in rows:
                    if error:
                        raise FormatError(error)
                yield self._finish(place, [changes for _, changes, _ in rows if changes], before)

    def _from_rest(self, places: Sequence[Destination]) -> Iterator[TensorUpdate]:
        """Tensors of which the whole content is built, and compared with what is there."""
        jobs = (partial(self._changes, place, start, stop, last) for place in places for start, stop, last in ranges(place.recipe))
        parts: list[Part | None] = []
        before = iter(leaves_in_memory([self._memory(place) for place in places], self.threads))
        with closing(run_ordered(jobs, self.threads)) as results:
            for place, part, last in results:
                parts.append(part)
                if last:
                    self.rebuilder.check(place.recipe)
                    yield self._row(place, parts, next(before))
                    parts = []

    def _memory(self, place: Destination) -> Bytes | torch.Tensor:
        source = place.tensor.source
        assert isinstance(source, MemoryFile)
        return source.view(place.tensor.offset, place.tensor.nbytes)

    def _check_base(self, place: Destination, leaves: list[bytes]) -> None:
        recipe, found = place.recipe, tensor_digest(leaves)
        assert isinstance(recipe, PatchedTensor) and isinstance(recipe.below, BaseTensor)
        if found != recipe.below.digest:
            raise self.rebuilder.wrong_base(self.patch, tensor_differs(recipe.below, found))

    def _unpack(self, place: Destination, start: int) -> Changes:
        """The changes of a block."""
        recipe, entry, block = place.recipe, place.entry, start // BLOCK
        assert isinstance(recipe, PatchedTensor)
        dtype, stop = DTYPES[entry.dtype], min(start + BLOCK, place.tensor.nbytes)
        (coded,) = recipe.file.read_blocks(entry, block, block + 1)
        try:
            if place.codec == "sparse":
                positions, zigzags = sparse.unpack(coded, (stop - start) // dtype.carrier, dtype)
            else:
                positions, zigzags = context.unpack(coded, look(place.tensor, start, stop, "base"), dtype)
                positions = positions.copy()  # scratch
        except ValueError as error:
            raise FormatError(f"{recipe.file.source.name}: tensor {cut(entry.name)}, block {block}: {error}") from None
        recipe.changed[block] = len(positions)
        return positions, zigzags

    def _finish(self, place: Destination, blocks: Sequence[Changes], before: list[bytes]) -> TensorUpdate:
        assert isinstance(place.recipe, PatchedTensor)
        check_changed(place.recipe)
        dtype, size = DTYPES[place.entry.dtype], place.tensor.nbytes
        parts = [
            _run(start, min(start + RUN, size), blocks[start // BLOCK : (start + RUN) // BLOCK], dtype) for start in range(0, size, RUN)
        ]
        return self._row(place, parts, before)

    def _changes(self, place: Destination, start: int, stop: int, last: bool) -> tuple[Destination, Part | None, bool]:
        """What the patch moves in a range of a tensor."""

        dtype, stop = DTYPES[place.entry.dtype], min(stop, place.tensor.nbytes)
        new = place.recipe.build(start, stop)
        if isinstance(place.recipe, BaseTensor) and place.recipe.tensor is place.tensor:
            return place, None, last
        positions, zigzags = kernels.changes.changes_of(look(place.tensor, start, stop, "old"), new, dtype)
        return place, _part(start, stop, positions.copy(), zigzags.copy(), dtype), last

    def _row(self, place: Destination, found: Sequence[Part | None], before: list[bytes]) -> TensorUpdate:
        """A tensor's moves, on its device."""
        flat, dtype, name = self._memory(place), DTYPES[place.entry.dtype], place.tensor.name
        parts = [part for part in found if part is not None]
        if isinstance(flat, np.ndarray):
            if parts and not flat.flags.writeable:
                raise UnsupportedError(f"{MODEL}: {name}: is read-only memory: give a copy of it")
        elif parts:
            parts = [_on_device(flat, parts, dtype)]
        return TensorUpdate(name, dtype, flat, parts, before, place.recipe.digest)


def _run(start: int, stop: int, blocks: Sequence[Changes], dtype: Dtype) -> Part | None:
    """Moves of a run of blocks, bytes ``start`` to ``stop``, from their changes."""
    zigzags = np.concatenate([zigzags for _, zigzags in blocks])
    positions, done = np.empty(len(zigzags), np.int32), 0
    for k, (found, _) in enumerate(blocks):
        np.add(found, np.int32(k * (BLOCK // dtype.carrier)), out=positions[done : done + len(found)])
        done += len(found)
    return _part(start, stop, positions, zigzags, dtype)


def _part(start: int, stop: int, positions: Units, zigzags: Units, dtype: Dtype) -> Part | None:
    """Moves of bytes ``start`` to ``stop``, in whichever form is smaller; None if there are none."""
    if len(positions) * 4 <= stop - start:
        return Part(start, stop, positions, zigzags) if len(positions) else None
    every = np.zeros((stop - start) // dtype.carrier, dtype.unit)
    every[positions] = zigzags
    return Part(start, stop, None, every)


def _on_device(flat: torch.Tensor, parts: Sequence[Part], dtype: Dtype) -> Part:
    """Moves of blocks as moves of the whole tensor."""

    units, total = len(flat) // dtype.carrier, sum(len(part.zigzags) for part in parts)
    wide = np.int32 if units < 1 << 31 else np.int64
    dense = any(part.positions is None for part in parts) or total * (np.dtype(wide).itemsize + dtype.carrier) > len(flat)
    every = torch.zeros(units if dense else total, dtype=device.ops.SIGNED[dtype.carrier], device=flat.device)
    positions = None if dense else torch.empty(total, dtype=torch.int32 if wide is np.int32 else torch.int64, device=flat.device)
    done = 0
    for part in parts:
        first, zigzags = part.start // dtype.carrier, torch.from_numpy(part.zigzags.view(f"i{dtype.carrier}")).to(flat.device)
        if positions is not None:
            positions[done : done + len(zigzags)] = torch.from_numpy(part.positions.astype(wide) + wide(first)).to(flat.device)
            every[done : done + len(zigzags)] = zigzags
        elif part.positions is None:
            every[first : first + len(zigzags)] = zigzags
        else:
            every[torch.from_numpy(part.positions.astype(np.int64) + first).to(flat.device)] = zigzags
        done += len(zigzags)
    return Part(0, len(flat), positions, every)


def _memory(tensor: Tensor) -> tuple[str, int, int]:
    """What two tensors that are one have in common: device, address and size."""
    assert isinstance(tensor.source, MemoryFile)
    return address(tensor.source.view(tensor.offset, tensor.nbytes)) if tensor.nbytes else (tensor.name, 0, 0)


def _check_overlaps(places: Mapping[tuple[str, int, int], Destination]) -> None:
    """Raise UnsupportedError for two tensors that share a part of their memory: writing one would change the other."""
    rows = sorted(places.items(), key=lambda row: row[0])
    end, last = ("", 0), ""
    for (where, begin, size), place in rows:
        if size and end > (where, begin) and end[0] == where:
            raise UnsupportedError(f"{MODEL}: {last} and {place.tensor.name} share a part of their memory: give a copy of one")
        end, last = max(end, (where, begin + size)), place.tensor.name


def scope_of(patch: OpenPatch, wanted: str | None) -> str:
    """The target scope that was asked for, or the only one."""
    scopes = list(dict.fromkeys(file.metadata.target_scope for file in patch.files))
    if wanted is None and len(scopes) == 1:
        return scopes[0]
    if wanted not in scopes:
        raise UnsupportedError(f"{patch.path}: has the scopes {cut(', '.join(scopes))}: load them one by one, with scope=...")
    return wanted


def _find(base: Any, names: Sequence[str], tied: Mapping[str, str]) -> dict[str, Any]:
    """The model's tensors, also under the names that the patch has for them where the model has another of their names."""
    state = _align(state_of(base, MODEL), [*names, *tied])
    for name, kept in tied.items():
        if kept not in state and name in state:
            state[kept] = state[name]
        elif name in names and name not in state and kept in state:
            state[name] = state[kept]
    return state


def _align(state: State, names: Sequence[str]) -> dict[str, Any]:
    """The tensors under the names that a patch has for them: wrappers (DDP, torch.compile, a head model) put prefixes before them."""
    state = dict(state)
    stems = Counter(map(strip_prefixes, state))
    by_stem = {strip_prefixes(name): name for name in state if stems[strip_prefixes(name)] == 1}
    missing: Mapping[str, str | None] = {name: by_stem.get(strip_prefixes(name)) for name in names if name not in state}
    for name, found in missing.items():
        if found is not None and found not in names and found in state:
            state[name] = state.pop(found)
    return state
