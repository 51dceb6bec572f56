"""How ``apply --in-place`` turns each file of a base into one of the target: by blocks, or by a new file that takes its place."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptdiff.checkpoint.adapt import AdaptedBase
from ckptdiff.checkpoint.contents import Checkpoint, WeightFile
from ckptdiff.checkpoint.scopes import is_index
from ckptdiff.errors import BaseMismatchError, OutputError
from ckptdiff.patching.overwrite import CONFIG_NAMES
from ckptdiff.patching.patch import OpenPatch
from ckptdiff.patching.recipes import PatchedTensor, Recipe, steps_of
from ckptdiff.patching.target_files import OutputFile


def is_hidden(path: str) -> bool:
    """Whether a file is taken away while the folder is neither base nor target, so that no engine loads it."""
    return path.rpartition("/")[2] in CONFIG_NAMES or is_index(path)


def path_in(base: Path, is_file: bool, path: str) -> Path:
    """Where a weight file of a checkpoint lies, which may be one file of any name."""
    return base if is_file else base / path


def check_layout(base: Checkpoint, patch: OpenPatch) -> None:
    """Raise an error unless a base can be changed in place: in the files that the patch records, by a patch of the same kind, no links.

    Raises:
        OutputError: the message says why, and what to do. BaseMismatchError: a file has another size than the patch records.
    """
    way_on = "give -o OUT, which writes a new one"
    if base.origin is not None:
        raise OutputError(f"{base.path}: is in the Hub's cache, which other programs read: copy it, or {way_on}")
    if base.is_file != (patch.index is None):
        kinds = ("one file", "a folder") if base.is_file else ("a folder", "one file")
        raise OutputError(f"{base.path}: is {kinds[0]}, but {patch.path} gives {kinds[1]}: {way_on}")
    found = sorted((file.path if patch.index else "", file.file.size) for file in base.weights)
    recorded = sorted((file.path if patch.index else "", file.size) for file in patch.base_files)
    if found != recorded:
        raise BaseMismatchError(
            f"{base.path}: does not have the {len(recorded)} weight files that the patch was made from, in these sizes: {way_on}"
        )
    if base.uncounted:
        raise OutputError(f"{base.path}: has tensors of one name in several files: {way_on}")
    assert isinstance(base.path, Path)  # which was checked before
    for file in base.weights:
        _refuse_links(base.path, path_in(base.path, base.is_file, file.path), way_on)


def _refuse_links(root: Path, path: Path, way_on: str) -> None:
    """Raise OutputError for a weight file that something else may lead to, or be kept by."""
    for place in (path, *(parent for parent in path.parents if parent == root or parent.is_relative_to(root))):
        if place.is_symlink():
            raise OutputError(f"{place}: is a link to {os.path.realpath(place)}, and nothing is written through links: {way_on}")
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise OutputError(f"{path}: has {status.st_nlink} names (hard links), all of which would change: copy it, or {way_on}")
    if any(parent.name == "snapshots" and parent.parent.name.startswith("models--") for parent in Path(os.path.realpath(path)).parents):
        raise OutputError(f"{path}: is in the Hub's cache, which other programs read: copy it, or {way_on}")
    if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: is read-only: make it writable, or {way_on}")


def lies_in_place(output: OutputFile, base: WeightFile | None) -> bool:
    """Whether a target's weight file is one of the base of which only blocks change: nothing in it moves."""
    if base is None or base.file.size != output.size or base.header.data_start != len(output.head):
        return False
    return all(_stays(recipe, base, offset) for offset, recipe in output.tensors)


def _stays(recipe: Recipe, base: WeightFile, offset: int) -> bool:
    """Whether a tensor is new, or made from the one that lies at its place."""
    first = steps_of(recipe)[0]
    if isinstance(first, PatchedTensor):
        return True
    whole = first.source.whole if isinstance(first.source, AdaptedBase) else None
    return whole is not None and whole.source is base.file and whole.offset == offset


@dataclass(frozen=True, slots=True)
class Moves:
    """The weight files that are written anew, in order, and when base files make room for them."""

    rebuilt: tuple[str, ...]
    """Paths of the target's files."""
    gone: tuple[str, ...]
    """Paths of the base's files that go: those that are replaced, and those that the target does not have."""
    reads: dict[str, frozenset[str]]
    """By the path of a rebuilt file: the base's files that it is built from."""

    def free(self, built: Collection[str]) -> list[str]:
        """The base's files that go and that nothing is built from any more, once these files are built."""
        needed = set().union(*(self.reads[path] for path in self.rebuilt if path not in built))
        return [path for path in self.gone if path not in needed]


def moves_of(base: Checkpoint, outputs: Sequence[OutputFile], in_place: Collection[str]) -> Moves:
    """The moves of a target; ``in_place``: paths of the files of which only blocks change."""
    by_source = {id(file.file): file.path for file in base.weights}
    reads = {
        output.path: frozenset(by_source[id(tensor.source)] for _, recipe in output.tensors for tensor in _tensors_of(recipe))
        for output in outputs
        if output.path not in in_place
    }
    return Moves(tuple(reads), tuple(file.path for file in base.weights if file.path not in in_place), reads)


def _tensors_of(recipe: Recipe) -> list:  # type: ignore[type-arg]
    first = steps_of(recipe)[0]
    if isinstance(first, PatchedTensor) or not isinstance(first.source, AdaptedBase):
        return []
    return list(first.source.tensors.values())


def peak_size(moves: Moves, sizes: dict[str, int], old: dict[str, int]) -> int:
    """The most bytes that are needed beside the base at any time; ``sizes``: of the target's files, ``old``: of the base's, by path."""
    taken = peak = 0
    built, freed = set[str](), set[str]()
    for path in moves.rebuilt:
        taken += sizes[path]
        peak = max(peak, taken)
        built.add(path)
        for free in moves.free(built):
            if free not in freed:
                freed.add(free)
                taken -= old[free]
    return peak
