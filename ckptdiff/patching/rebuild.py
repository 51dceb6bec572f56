"""The tensors of a target rebuilt from a base and a chain of patches (spec section 10)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from pathlib import Path

from ckptdiff.checkpoint.adapt import AdaptedBase, default_pieces
from ckptdiff.checkpoint.contents import Checkpoint, Tensor
from ckptdiff.checkpoint.reader import RecordedBase, open_checkpoint
from ckptdiff.checkpoint.selection import matches
from ckptdiff.errors import BaseMismatchError, CkptdiffError, FormatError, IntegrityError, cut
from ckptdiff.format.entry import Entry
from ckptdiff.format.index import OtherFile
from ckptdiff.format.patch_file import PatchFile
from ckptdiff.io.parallel import Executor, Progress, no_progress
from ckptdiff.io.places import Place
from ckptdiff.io.source import LocalFile
from ckptdiff.io.store_file import StoreFile
from ckptdiff.io.unit_log import UnitLog
from ckptdiff.patching import other_files
from ckptdiff.patching.build import CheckCache, Sink, T, rebuild
from ckptdiff.patching.patch import OpenPatch
from ckptdiff.patching.rebuild_files import TensorPlace, rebuild_files
from ckptdiff.patching.recipes import AdaptedTensor, PatchedTensor, RebuildJob, Recipe, units_of
from ckptdiff.patching.wrong_base import WantedBase


def open_base(
    base: str | os.PathLike[str],
    chain: Sequence[OpenPatch],
    *,
    only_weights: bool = False,
    with_files: bool = False,
    by_ranges: bool = False,
) -> AbstractContextManager[Checkpoint]:
    """Open the base of a chain: just the files that its first patch records, if they are all there.

    Args:
        base: a file, a folder or an id on the Hub.
        chain: the patches, in order.
        only_weights: fetch no files without weights from the Hub.
        with_files: take all files without weights, not just those that the patches need.
        by_ranges: as of :func:`~ckptdiff.checkpoint.reader.open_checkpoint`.
    """
    wanted = [] if only_weights else [other.path for patch in chain for other in patch.others if other.kind != "new"]
    recorded = RecordedBase({file.path: file.size for file in chain[0].base_files}, chain[0].base_scopes, wanted)
    return open_checkpoint(base, needs_weights=bool(chain[0].files), with_files=with_files, recorded=recorded, by_ranges=by_ranges)


def check_stored(patch: OpenPatch, only: Sequence[str] = (), progress: Progress = no_progress) -> None:
    """Raise the first fault of a patch's payloads and stored files (spec 10, end of step 1)."""
    others = () if only else patch.others
    chosen = [None if not only else {name for name in file.table.columns.names if matches(name, only)} for file in patch.files]
    files = list(zip(patch.files, chosen, strict=True))
    payloads = itertools.chain.from_iterable(file.payloads.check(names) for file, names in files)
    done, total = 0, sum(file.payloads.size(names) for file, names in files) + sum(other.stored for other in others)
    for size in itertools.chain(payloads, (_checked(patch, other) for other in others)):
        done += size
        if total:
            progress("checking the patch", done, total)
    for file in patch.files:
        if isinstance(file.source, StoreFile):  # what is kept of it would be gone before it is read again, in part
            file.source.forget()


def _checked(patch: OpenPatch, other: OtherFile) -> int:
    """Check the stored form of a file without weights; returns how many bytes it has."""
    error = other_files.stored_error(patch, other)
    if error:
        raise error
    return other.stored


class Rebuilder:
    """Rebuilds the target of a checked chain of patches from an open base.

    Args:
        base: the checkpoint that the first patch was made from.
        chain: the patches.
        execute: runs the jobs.
        scratch: keeps tensors that patches before the last give, where a patch after them takes pieces of them.
    """

    def __init__(self, base: Checkpoint, chain: Sequence[OpenPatch], execute: Executor, scratch: ScratchTensors | None = None) -> None:
        self.base, self.chain, self.execute, self.scratch = base, chain, execute, scratch
        self.wanted, self.checked = WantedBase.of(base, chain[0]), CheckCache()
        self._recipes: dict[tuple[int, str, str, str], Recipe] = {}
        self._scopes: dict[str, dict[str, Tensor]] = {}
        self._needed: list[AdaptedTensor] = []  # all that is needed of the base so far

    def recipe(self, depth: int, file: PatchFile, entry: Entry) -> Recipe:
        """How to build an entry of the chain's patch number ``depth`` (spec 10, step 3): for one entry always the same object.

        Raises:
            BaseMismatchError: a base tensor does not exist, or has another dtype or too few units, or, in a chain, another digest.
        """
        own = "" if entry.counts or entry.of else file.metadata.target_path
        key = (depth, file.metadata.target_scope, entry.of or entry.name, own)
        if key not in self._recipes:
            self._recipes[key] = self._recipe(depth, *((file, entry) if own else self.chain[depth].entries[key[1:3]]))
        return self._recipes[key]

    def _recipe(self, depth: int, file: PatchFile, entry: Entry) -> Recipe:
        if entry.kind == "new":
            return PatchedTensor(file, entry, None)
        base = self._from_base(file, entry) if depth == 0 else self._from_patch(depth, file, entry)
        return PatchedTensor(file, entry, base) if entry.kind == "delta" else base

    def _from_base(self, file: PatchFile, entry: Entry) -> AdaptedTensor:
        """The adapted base of an entry of the first patch."""
        scope, tensors = file.metadata.base_scope or "", dict[str, Tensor]()
        known = self._scopes.get(scope)
        if known is None:
            known = self._scopes[scope] = self.base.scope(scope) or {}
        for name, needed in units_needed(entry).items():
            tensor = known.get(name)
            if tensor is None:
                raise self.wanted.error(f"it has no tensor {cut(name)}" + (f" in {cut(scope)}" if len(self.base.scopes) > 1 else ""))
            if tensor.dtype != entry.base_dtype:
                raise self.wanted.error(f"its tensor {cut(name)} is {tensor.dtype}, expected {entry.base_dtype}")
            if tensor.units < needed:
                raise self.wanted.error(f"its tensor {cut(name)} has {tensor.units} units, expected {needed} or more")
            tensors[name] = tensor
        adapted = self._adapted(entry, tensors, partial(self.wanted.mismatch, entry))
        self._needed.append(adapted)  # of which another thread may be the last by now
        return adapted

    def _adapted(self, entry: Entry, tensors: dict[str, Tensor], mismatch: Callable[[bytes], CkptdiffError]) -> AdaptedTensor:
        """The adapted base of an entry, from the tensors that its pieces name."""
        pieces = entry.pieces or default_pieces(entry.name, tensors[entry.name].units, entry.units)
        source = AdaptedBase(pieces, tensors, entry.base_dtype or "", entry.dtype, entry.units)
        return AdaptedTensor(source, entry.units, entry.dtype, entry.nbytes, entry.base_digest, mismatch)

    def _from_patch(self, depth: int, file: PatchFile, entry: Entry) -> Recipe:
        """The adapted base of an entry of a later patch, out of what the patch before gives."""
        before, patch = self.chain[depth - 1], self.chain[depth]
        scope = scope_before(before.scopes, file)
        found = dict[str, tuple[PatchFile, Entry]]()
        for name, needed in units_needed(entry).items():
            source = before.entries.get((scope, name))
            if source is None or source[1].dtype != entry.base_dtype or source[1].units < needed:
                raise BaseMismatchError(f"{patch.path}: needs the tensor {cut(name)}, which {before.path} does not give in that form")
            found[name] = source
        mismatch = partial(_not_given, patch.path, entry.base_names[0], before.path)
        if not is_streamed(entry, next(iter(found.values()))[1].units):
            return self._adapted(entry, {name: self.built(depth - 1, *source) for name, source in found.items()}, mismatch)
        lower = self.recipe(depth - 1, *next(iter(found.values())))
        used = entry.pieces[0].units if entry.pieces else min(units_of(lower), entry.units)
        if lower.dtype == entry.dtype and used == units_of(lower) == entry.units:
            if lower.digest != entry.base_digest:
                raise mismatch(lower.digest)
            return lower
        return AdaptedTensor(lower, used, entry.dtype, entry.nbytes, entry.base_digest, mismatch)

    def built(self, depth: int, file: PatchFile, entry: Entry) -> Tensor:
        """A tensor that a patch before the last gives, built and checked, in scratch."""
        assert self.scratch is not None
        key = (depth, file.metadata.target_scope, entry.of or entry.name)
        if key not in self.scratch.tensors:
            recipe = self.recipe(depth, file, entry)
            path = self.scratch.folder / f"tensor-{len(self.scratch.tensors)}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            with closing(self.rebuild_files([recipe], [(path, 0)], None)) as jobs:
                for _ in jobs:
                    pass
            self.scratch.add(key, Tensor(key[1], key[2], entry.dtype, entry.shape, entry.nbytes, LocalFile(path), 0))
        return self.scratch.tensors[key]

    def rebuild(self, recipes: Sequence[Recipe], sink: Sink[T]) -> Generator[tuple[RebuildJob, T], None, None]:
        """:func:`~ckptdiff.patching.build.rebuild` with this chain's recipes."""
        yield from rebuild(recipes, sink, self.execute, self.checked)

    def rebuild_files(
        self, recipes: Sequence[Recipe], places: Sequence[TensorPlace], log: UnitLog | None
    ) -> Generator[RebuildJob, None, None]:
        """:func:`~ckptdiff.patching.rebuild_files.rebuild_files` with this chain's recipes."""
        yield from rebuild_files(recipes, places, self.execute, self.checked, log)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """After a failure, look for its cause in the base.

        Raises:
            BaseMismatchError: the base has another content than the first patch was made from; the first tensor is named. Of kind
                ``already_target`` if it has the target's content wherever the last patch changes a tensor (spec 10).
        """
        try:
            yield
        except BaseMismatchError:
            self.raise_if_target()
            raise
        except (FormatError, IntegrityError):
            error = self.base_error()
            if error is not None:
                self.raise_if_target()
                raise error from None
            raise

    def base_error(self) -> CkptdiffError | None:
        """The error of the first tensor for which the base, as far as it was looked for, has another content."""
        errors = (self.checked.error_of(step) for step in self._needed)
        return next((error for error in errors if isinstance(error, BaseMismatchError)), None)

    def raise_if_target(self) -> None:
        """Raise BaseMismatchError of kind ``already_target`` if the base is the chain's target already (spec 10)."""
        last, deltas = self.chain[-1], 0
        for (scope, name), (_, entry) in last.entries.items():
            if entry.kind == "delta":
                deltas += 1
                tensor = (self.base.scope(scope) or {}).get(name)
                if tensor is None or (tensor.dtype, tensor.shape) != (entry.dtype, entry.shape):
                    return
                if self.checked.digest_of(tensor) != entry.digest:
                    return
        if deltas:
            raise BaseMismatchError(
                f"{self.base.path}: is already the target of {last.path}, not its base: "
                "give the checkpoint that the patch was made from, or use this one as it is",
                "already_target",
            )


def _not_given(patch: Place, name: str, before: Place, digest: bytes) -> BaseMismatchError:
    return BaseMismatchError(f"{patch}: tensor {cut(name)} is not the one that {before} gives")


def scope_before(scopes: Collection[str], file: PatchFile) -> str:
    """The scope of the patch before that a patch file takes its base tensors from: the only one, or that of its base scope's id."""
    return next(iter(scopes)) if len(scopes) == 1 else file.metadata.base_scope or ""


def base_scope_of(before: Sequence[OpenPatch], file: PatchFile) -> str:
    """The base's scope that a patch file's tensors come from, through the patches before it."""
    for patch in reversed(before):
        scope = scope_before(patch.scopes, file)
        file = next((one for one in patch.files if one.metadata.target_scope == scope), file)
    return file.metadata.base_scope or ""


def units_needed(entry: Entry) -> dict[str, int]:
    """How many units each base tensor must have for an entry's pieces."""
    needed = dict.fromkeys(entry.base_names, 0)
    for name, first, units in entry.pieces:
        if name is not None:
            needed[name] = max(needed[name], first + units)
    return needed


def is_streamed(entry: Entry, units: int) -> bool:
    """Whether the tensor that an entry is made from, of so many units, is built along with it, and not once for all that take from it.

    It must take the first units of one tensor, and at least half of them: a patch may cut one long tensor into very many short ones.
    """
    if len(entry.pieces) > 1 or any(piece.first for piece in entry.pieces):
        return False
    return 2 * (entry.pieces[0].units if entry.pieces else min(entry.units, units)) >= units


class ScratchTensors:
    """Tensors that patches before the last one of a chain give, each in a file of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tensors = folder, dict[tuple[int, str, str], Tensor]()

    def add(self, key: tuple[int, str, str], tensor: Tensor) -> None:
        """Keep a tensor, by the number of its patch, scope and name."""
        self.tensors[key] = tensor

    def close(self) -> None:
        """Close the files; the folder's owner removes them."""
        for tensor in self.tensors.values():
            tensor.source.close()


def scratch_size(chain: Sequence[OpenPatch], only: Sequence[str] = ()) -> int:
    """Bytes of the tensors that a chain's target needs in scratch, or those of its tensors whose names match a glob."""
    sizes = dict[tuple[int, str, str], int]()
    needed = [(file, entry) for file in chain[-1].files for entry in file.table.entries if not only or matches(entry.name, only)]
    for depth in range(len(chain) - 1, 0, -1):
        lower = dict[tuple[str, str], tuple[PatchFile, Entry]]()
        before = chain[depth - 1]
        for file, entry in needed:
            if entry.kind == "copy":
                file, entry = chain[depth].entries[file.metadata.target_scope, entry.of or ""]
            base_scope = scope_before(before.scopes, file)
            for base in entry.base_names:
                found = before.entries.get((base_scope, base))
                if found is not None:
                    key = base_scope, found[1].of or base
                    lower[key] = before.entries[key]
                    if not is_streamed(entry, found[1].units):
                        sizes[(depth - 1, *key)] = found[1].nbytes
        needed = list(lower.values())
    return sum(sizes.values())
