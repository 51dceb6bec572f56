"""The tensors of a target rebuilt from a base and a chain of patches (spec section 10)."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from ckptdiff.checkpoint.contents import Checkpoint
from ckptdiff.checkpoint.reader import RecordedBase, open_checkpoint
from ckptdiff.checkpoint.selection import matches
from ckptdiff.errors import BaseMismatchError, CkptdiffError, FormatError, IntegrityError, cut
from ckptdiff.format.entry import Entry
from ckptdiff.format.patch_file import PatchFile
from ckptdiff.io.parallel import Executor, Progress, no_progress
from ckptdiff.patching import other_files
from ckptdiff.patching.build import CheckCache, Sink, T, rebuild
from ckptdiff.patching.patch import OpenPatch
from ckptdiff.patching.recipes import BaseTensor, PatchedTensor, RebuildJob, Recipe, steps_of
from ckptdiff.patching.wrong_base import WantedBase


def open_base(
    base: str | os.PathLike[str], chain: Sequence[OpenPatch], *, only_weights: bool = False, with_files: bool = False
) -> AbstractContextManager[Checkpoint]:
    """Open the base of a chain: just the files that its first patch records, if they are all there.

    Args:
        base: a file, a folder or an id on the Hub.
        chain: the patches, in order.
        only_weights: fetch no files without weights from the Hub.
        with_files: take all files without weights, not just those that the patches need.
    """
    wanted = [] if only_weights else [other.path for patch in chain for other in patch.others if other.kind != "new"]
    recorded = RecordedBase({file.path: file.size for file in chain[0].base_files}, chain[0].base_scopes, wanted)
    return open_checkpoint(base, needs_weights=bool(chain[0].files), with_files=with_files, recorded=recorded)


def check_stored(patch: OpenPatch, only: Sequence[str] = (), progress: Progress = no_progress) -> None:
    """Raise the first fault of a patch's payloads and stored files (spec 10, end of step 1)."""
    done, total = 0, patch.stored_size
    for file in patch.files:
        for entry in file.table.entries:
            if entry.has_payload and (not only or matches(entry.name, only)):
                error = file.payload_error(entry)
                if error:
                    raise error
                done += entry.payload_size
                progress("checking the patch", done, total)
    for other in () if only else patch.others:
        error = other_files.stored_error(patch, other)
        if error:
            raise error


class Rebuilder:
    """Rebuilds the target of a checked chain of patches from an open base."""

    def __init__(self, base: Checkpoint, chain: Sequence[OpenPatch], execute: Executor) -> None:
        self.base, self.chain, self.execute = base, chain, execute
        self.wanted, self.checked = WantedBase(base, chain[0]), CheckCache()

    def recipe(self, depth: int, file: PatchFile, entry: Entry) -> Recipe:
        """How to build an entry of the chain's patch number ``depth`` (spec 10, step 3).

        Raises:
            BaseMismatchError: its base tensor does not exist, or has another dtype, shape or digest.
        """
        scope = file.metadata.target_scope
        if entry.kind == "copy":
            return self.recipe(depth, *self.chain[depth].entries[scope, entry.of or ""])
        if entry.kind == "new":
            return PatchedTensor(file, entry, None)
        base = self._base_recipe(depth, file, entry)
        return PatchedTensor(file, entry, base) if entry.kind == "delta" or entry.adapted else base

    def _base_recipe(self, depth: int, file: PatchFile, entry: Entry) -> Recipe:
        """How to build an entry's base tensor, which comes from the base or from the patch before."""
        name, scope, patch = entry.base_name or "", file.metadata.base_scope, self.chain[depth]
        if depth == 0:
            tensor = (self.base.scope(scope or "") or {}).get(name)
            if tensor is None:
                raise self.wanted.error(f"it has no tensor {cut(name)}" + (f" in {cut(scope)}" if len(self.base.scopes) > 1 else ""))
            if (tensor.dtype, tensor.shape) != (entry.base_dtype, entry.base_shape):
                found, expected = f"{tensor.dtype} {cut(list(tensor.shape))}", f"{entry.base_dtype} {cut(list(entry.base_shape or ()))}"
                raise self.wanted.error(f"its tensor {cut(name)} is {found}, expected {expected}")
            return BaseTensor(tensor, entry.base_digest, self.wanted)
        before = self.chain[depth - 1]
        source = before.entries.get((next(iter(before.scopes)) if len(before.scopes) == 1 else scope or "", name))
        if source is None or (source[1].dtype, source[1].shape) != (entry.base_dtype, entry.base_shape):
            raise BaseMismatchError(f"{patch.path}: needs the tensor {cut(name)}, which {before.path} does not give in that form")
        recipe = self.recipe(depth - 1, *source)
        if recipe.digest != entry.base_digest:
            raise BaseMismatchError(f"{patch.path}: tensor {cut(name)} is not the one that {before.path} gives")
        return recipe

    def rebuild(self, recipes: Sequence[Recipe], sink: Sink[T]) -> Generator[tuple[RebuildJob, T], None, None]:
        """:func:`rebuild` with this chain's recipes; a failure is explained by :meth:`explained`."""
        with self.explained(lambda: recipes):
            yield from rebuild(recipes, sink, self.execute, self.checked)

    @contextmanager
    def explained(self, recipes: Callable[[], Iterable[Recipe]]) -> Iterator[None]:
        """After a failure, look for its cause in the base tensors of these recipes.

        Raises:
            BaseMismatchError: a base tensor of these recipes has another content than the patch was made from; the first one is named.
                Of kind ``already_target`` if all tensors that the chain changes have the target's content.
        """
        try:
            yield
        except (FormatError, IntegrityError, BaseMismatchError):
            self.raise_if_wrong_base(recipes())
            raise

    def raise_if_wrong_base(self, recipes: Iterable[Recipe]) -> None:
        """Look for a fault of the base; see :meth:`explained`."""
        first: CkptdiffError | None = None
        deltas = at_target = 0
        for recipe in recipes:
            steps = steps_of(recipe)
            error = self.base_error(steps[0])
            first = first or error
            if isinstance(steps[0], BaseTensor) and any(isinstance(step, PatchedTensor) and step.entry.kind == "delta" for step in steps):
                deltas += 1
                at_target += self.checked.digest_of(steps[0].tensor) == steps[-1].digest
        if first and deltas and at_target == deltas:
            raise BaseMismatchError(
                f"{self.base.path}: is already the target of {self.chain[-1].path}; nothing to do: "
                "give the checkpoint that the patch was made from, or use this one as it is",
                "already_target",
            )
        if first:
            raise first

    def base_error(self, step: Recipe) -> BaseMismatchError | None:
        """The error of a base tensor that is read for this and has another digest than the patch wants; None for any other step."""
        if not isinstance(step, BaseTensor):
            return None
        found = self.checked.digest_of(step.tensor)
        return step.origin.mismatch(step.tensor, found, step.digest) if found != step.digest else None

    def target_recipes(self) -> list[Recipe]:
        """The recipes of all tensors of the chain's target."""
        last = len(self.chain) - 1
        return [self.recipe(last, file, entry) for file in self.chain[last].files for entry in file.table.entries]
