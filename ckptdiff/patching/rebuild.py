"""A target rebuilt from a base and a chain of patches, file by file (spec section 10)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ckptdiff.checkpoint.contents import Checkpoint
from ckptdiff.checkpoint.reader import RecordedBase, open_checkpoint
from ckptdiff.checkpoint.selection import matches
from ckptdiff.errors import BaseMismatchError, CkptdiffError, OutputError, cut
from ckptdiff.format.canonical import quoted
from ckptdiff.format.dtypes import Bytes
from ckptdiff.format.entry import Entry
from ckptdiff.format.patch_file import PatchFile
from ckptdiff.format.safetensors import header_json
from ckptdiff.io.parallel import Progress, no_progress, run_ordered
from ckptdiff.patching import other_files
from ckptdiff.patching.patch import OpenPatch
from ckptdiff.patching.recipes import (
    BaseTensor,
    CheckCache,
    PatchedTensor,
    Recipe,
    built_digest,
    check_result,
    describe_mismatch,
    ranges,
    steps_built_whole,
    steps_of,
)

if TYPE_CHECKING:
    import torch


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


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A safetensors file to write."""

    path: str
    """Path relative to the output folder; empty for a file of selected tensors."""
    head: bytes
    """The bytes before the tensors: the header's length and the header."""
    tensors: tuple[tuple[int, Recipe], ...]
    """Offset in the file and recipe of each tensor."""
    size: int
    """Size of the whole file in bytes."""


def recipes_of(outputs: Iterable[OutputFile]) -> list[Recipe]:
    """The recipes of all tensors of some files."""
    return [recipe for output in outputs for _, recipe in output.tensors]


class Rebuilder:
    """Rebuilds the target of a checked chain of patches from an open base.

    ``device`` is the torch device that applies changes of the codec ``sparse``; None: the host does.
    """

    def __init__(
        self, base: Checkpoint, chain: Sequence[OpenPatch], threads: int, progress: Progress, device: torch.device | None = None
    ) -> None:
        self.device = device
        self.base, self.chain, self.threads, self.progress = base, chain, threads, progress
        self.done = self.total = 0
        self.other_files = [{other.path: other for other in patch.others} for patch in chain]
        self.checked = CheckCache()

    def recipe(self, depth: int, file: PatchFile, entry: Entry) -> Recipe:
        """How to build an entry of the chain's patch number ``depth`` (spec 10, step 3).

        Raises:
            BaseMismatchError: its base tensor does not exist, or has another dtype, shape or digest.
        """
        scope = file.metadata.target_scope
        if entry.kind == "copy":
            return self.recipe(depth, *self.chain[depth].entries[scope, entry.of or ""])
        if entry.kind == "new":
            return PatchedTensor(file, entry, None, self.device)
        base = self._base_recipe(depth, file, entry)
        return PatchedTensor(file, entry, base, self.device) if entry.kind == "delta" or entry.adapted else base

    def _base_recipe(self, depth: int, file: PatchFile, entry: Entry) -> Recipe:
        """How to build an entry's base tensor, which comes from the base or from the patch before."""
        name, scope, patch = entry.base_name or "", file.metadata.base_scope, self.chain[depth]
        if depth == 0:
            tensor = (self.base.scope(scope or "") or {}).get(name)
            if tensor is None:
                raise self.wrong_base(patch, f"it has no tensor {cut(name)}" + (f" in {cut(scope)}" if len(self.base.scopes) > 1 else ""))
            if (tensor.dtype, tensor.shape) != (entry.base_dtype, entry.base_shape):
                found, expected = f"{tensor.dtype} {cut(list(tensor.shape))}", f"{entry.base_dtype} {cut(list(entry.base_shape or ()))}"
                raise self.wrong_base(patch, f"its tensor {cut(name)} is {found}, expected {expected}")
            return BaseTensor(tensor, entry.base_digest)
        before = self.chain[depth - 1]
        source = before.entries.get((next(iter(before.scopes)) if len(before.scopes) == 1 else scope or "", name))
        if source is None or (source[1].dtype, source[1].shape) != (entry.base_dtype, entry.base_shape):
            raise BaseMismatchError(f"{patch.path}: needs the tensor {cut(name)}, which {before.path} does not give in that form")
        recipe = self.recipe(depth - 1, *source)
        if recipe.digest != entry.base_digest:
            raise BaseMismatchError(f"{patch.path}: tensor {cut(name)} is not the one that {before.path} gives")
        return recipe

    def outputs(self) -> list[OutputFile]:
        """All weight files of the chain's target."""
        last, outputs = len(self.chain) - 1, []
        for file in self.chain[last].files:
            start = file.header.data_start
            recipes = zip((start + info.begin for info in file.header.tensors), file.table.entries, strict=True)
            tensors = tuple((offset, self.recipe(last, file, entry)) for offset, entry in recipes)
            head = len(file.header.raw).to_bytes(8, "little") + file.header.raw
            outputs.append(OutputFile(file.metadata.target_path, head, tensors, file.metadata.target_size))
        return outputs

    def subset(self, globs: Sequence[str]) -> OutputFile:
        """One new safetensors file with the target's tensors whose names match a glob.

        Raises:
            OutputError: no name matches, or one name matches in two scopes.
        """
        last = len(self.chain) - 1
        chosen: dict[str, tuple[PatchFile, Entry]] = {}
        for (_, name), (file, entry) in self.chain[last].entries.items():
            if matches(name, globs):
                if name in chosen:
                    both = f"{cut(chosen[name][0].metadata.target_scope)} and {cut(file.metadata.target_scope)}"
                    raise OutputError(f"--only matches {cut(name)} of two scopes, {both}: narrow it")
                chosen[name] = file, entry
        if not chosen:
            raise OutputError(f"--only matches none of the {len(self.chain[last].entries)} tensors; ckptdiff info --tensors lists them")
        rows = [(name, entry.dtype, entry.shape, entry.nbytes) for name, (_, entry) in chosen.items()]
        raw = header_json([("__metadata__", '{"format":"pt"}')], rows)
        tensors, position = [], 8 + len(raw)
        for file, entry in chosen.values():
            tensors.append((position, self.recipe(last, file, entry)))
            position += entry.nbytes
        return OutputFile("", len(raw).to_bytes(8, "little") + raw, tuple(tensors), position)

    # --- writing ---

    def write(self, output: OutputFile, path: Path) -> None:
        """Build and check every tensor of a file, and write the file to ``path``, which must not exist (spec 10, steps 3 to 5)."""
        self.total += output.size
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            write_at(fd, output.head, 0)
            with closing(run_ordered(self._jobs(output, fd), self.threads)) as results:
                for recipe, nbytes, last in results:
                    self.done += nbytes
                    self.progress("rebuilding", self.done, self.total)
                    if last:
                        self.check(recipe)
        finally:
            os.close(fd)

    def _jobs(self, output: OutputFile, fd: int) -> Iterator[Callable[[], tuple[Recipe, int, bool]]]:
        for offset, recipe in output.tensors:
            for start, stop, last in ranges(recipe):
                yield partial(self._step, recipe, fd, offset, start, stop, last)

    def _step(self, recipe: Recipe, fd: int, offset: int, start: int, stop: int, last: bool) -> tuple[Recipe, int, bool]:
        data = recipe.build(start, stop)
        write_at(fd, data, offset + start)
        return recipe, len(data), last

    def check(self, recipe: Recipe) -> None:
        """Compare the digests of a tensor that was built, and of all tensors that it was built from, the base's first."""
        steps, longer = steps_built_whole(recipe)
        if longer is not None:
            self.checked.check(longer, self.check)
        for step in steps:
            if isinstance(step, PatchedTensor):
                check_result(step)
            elif built_digest(step) != step.digest:
                raise self.wrong_base(self.chain[0], describe_mismatch(step, built_digest(step)))
        for step in steps_of(recipe):
            step.leaves.clear()

    # --- errors of a wrong base ---

    def wrong_base(self, patch: OpenPatch, why: str) -> BaseMismatchError:
        """The error for a base that a patch was not made from."""
        return BaseMismatchError(f"{self.base.path}: is not the base of {patch.path}: {why}. {describe_base(patch)}")

    def raise_if_wrong_base(self, recipes: Iterable[Recipe]) -> None:
        """After a failure, look for its cause in the base.

        Raises:
            BaseMismatchError: a base tensor of these recipes has another content than the patch was made from; the first one is named.
                Of kind ``already_target`` if all tensors that the chain changes have the target's content.
        """
        first: CkptdiffError | None = None
        deltas = at_target = 0
        for recipe in recipes:
            steps = steps_of(recipe)
            if not isinstance(steps[0], BaseTensor):
                continue
            found = self.checked.digest_of(steps[0].tensor)
            if found != steps[0].digest and first is None:
                first = self.wrong_base(self.chain[0], describe_mismatch(steps[0], found))
            if any(isinstance(step, PatchedTensor) and step.entry.kind == "delta" for step in steps):
                deltas += 1
                at_target += found == steps[-1].digest
        if first and deltas and at_target == deltas:
            raise BaseMismatchError(
                f"{self.base.path}: is already the target of {self.chain[-1].path}; nothing to do: "
                "give the checkpoint that the patch was made from, or use this one as it is",
                "already_target",
            )
        if first:
            raise first

    def write_others(self, folder: Path) -> None:
        """Write the target's files without weights; those that earlier patches give are rebuilt in a scratch folder."""
        if self.base.is_file and any(other.kind != "new" for other in self.chain[0].others):
            raise BaseMismatchError(
                f"{self.base.path}: is one file; give the folder that it lies in, since the patch needs other files too"
            )
        scratch = folder.with_name("scratch")
        for k, other in enumerate(self.chain[-1].others):
            other_files.rebuild(self.chain[-1], other, self._other(len(self.chain) - 1, other.path, scratch / str(k)), folder / other.path)

    def _other(self, depth: int, path: str, scratch: Path) -> Path | None:
        """The file ``path`` that patch number ``depth`` starts from: the base's, or one rebuilt in ``scratch``; None if there is none."""
        if depth == 0:
            return self.base.others.get(path)
        before = self.chain[depth - 1]
        other = self.other_files[depth - 1].get(path)
        if other is None:
            return None
        out = scratch / str(depth)
        other_files.rebuild(before, other, self._other(depth - 1, path, scratch), out)
        return out


def describe_base(patch: OpenPatch) -> str:
    """A sentence that says which base a patch was made from."""
    if patch.base_repo is not None:
        return f"It wants {cut(patch.base_repo.repo)}@{cut(patch.base_repo.revision or 'main')}"
    if patch.base_files:
        file, more = patch.base_files[0], len(patch.base_files) - 1
        return f"It wants {quoted(file.path)} with the SHA-256 {file.sha256}" + (f" and {more} more" if more else "")
    return f"It wants a base with the identity {patch.base_identity.hex()}"


def write_at(fd: int, data: bytes | Bytes, offset: int) -> None:
    """Write all of ``data`` at ``offset``."""
    view = memoryview(data)
    while len(view):
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count
