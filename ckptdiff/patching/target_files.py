"""The files of a rebuilt target (spec section 10, steps 3 to 5)."""

from __future__ import annotations

import os
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ckptdiff.checkpoint.names import near_names
from ckptdiff.checkpoint.scopes import is_index
from ckptdiff.checkpoint.selection import matches
from ckptdiff.errors import BaseMismatchError, OutputError, cut
from ckptdiff.format.entry import Entry
from ckptdiff.format.patch_file import PatchFile
from ckptdiff.format.safetensors import header_json
from ckptdiff.io.parallel import Progress
from ckptdiff.io.places import Place
from ckptdiff.io.store_path import StorePath
from ckptdiff.io.unit_log import UnitLog
from ckptdiff.io.work_folder import discard
from ckptdiff.patching import other_files
from ckptdiff.patching.file_sink import ObjectSink
from ckptdiff.patching.rebuild import Rebuilder
from ckptdiff.patching.recipes import RebuildJob, Recipe


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


def outputs_of(rebuilder: Rebuilder) -> list[OutputFile]:
    """All weight files of a chain's target."""
    last, outputs = len(rebuilder.chain) - 1, []
    for file in rebuilder.chain[last].files:
        start = file.header.data_start
        recipes = zip((start + info.begin for info in file.header.tensors), file.table.entries, strict=True)
        tensors = tuple((offset, rebuilder.recipe(last, file, entry)) for offset, entry in recipes)
        head = len(file.header.raw).to_bytes(8, "little") + file.header.raw
        outputs.append(OutputFile(file.metadata.target_path, head, tensors, file.metadata.target_size))
    return outputs


def subset_of(rebuilder: Rebuilder, globs: Sequence[str]) -> OutputFile:
    """One new safetensors file with the target's tensors whose names match a glob.

    Raises:
        OutputError: no name matches, or one name matches in two scopes.
    """
    last = len(rebuilder.chain) - 1
    entries, chosen = rebuilder.chain[last].entries, dict[str, tuple[PatchFile, Entry]]()
    for (_, name), (file, entry) in entries.items():
        if matches(name, globs):
            if name in chosen:
                both = f"{cut(chosen[name][0].metadata.target_scope)} and {cut(file.metadata.target_scope)}"
                raise OutputError(f"--only matches {cut(name)} of two scopes, {both}: narrow it")
            chosen[name] = file, entry
    if not chosen:
        given, near = ", ".join(map(repr, globs)), near_names(globs[0], (name for _, name in entries))
        raise OutputError(
            f"{rebuilder.chain[last].path}: --only {given} matches none of its {len(entries):,} tensors"
            + (f", such as {near}" if near else "")
            + ": a glob is matched with the whole name; ckptdiff info --tensors lists them"
        )
    rows = [(name, entry.dtype, entry.shape, entry.nbytes) for name, (_, entry) in chosen.items()]
    raw = header_json([("__metadata__", '{"format":"pt"}')], rows)
    tensors, position = [], 8 + len(raw)
    for file, entry in chosen.values():
        tensors.append((position, rebuilder.recipe(last, file, entry)))
        position += entry.nbytes
    return OutputFile("", len(raw).to_bytes(8, "little") + raw, tuple(tensors), position)


# --- writing ---


def write_files(rebuilder: Rebuilder, folder: Place, outputs: Sequence[OutputFile], progress: Progress, log: UnitLog | None = None) -> None:
    """Build and check every tensor of some files, and write the files below a folder, or at its own path.

    None of them may exist, but for those that an earlier run has begun, of which ``log`` says what is finished.
    """
    recipes = [recipe for output in outputs for _, recipe in output.tensors]
    done, total = 0, sum(output.size for output in outputs)
    placed = [(folder / output.path if output.path else folder, output) for output in outputs]
    if isinstance(folder, Path):
        places = _begun_files({path: output for path, output in placed if isinstance(path, Path)}, log is not None)
        jobs = rebuilder.rebuild_files(recipes, places, log)
    else:
        jobs = _write_objects(rebuilder, recipes, placed)
    with closing(jobs):
        for job in jobs:
            done += job.nbytes
            progress("rebuilding", done, total)


def _write_objects(
    rebuilder: Rebuilder, recipes: Sequence[Recipe], placed: Sequence[tuple[Place, OutputFile]]
) -> Generator[RebuildJob, None, None]:
    """Write tensors into the objects of a store; yields the jobs."""
    heads = [(path, output.head, output.size) for path, output in placed if isinstance(path, StorePath)]
    sink = ObjectSink(heads, [(number, offset) for number, (_, output) in enumerate(placed) for offset, _ in output.tensors])
    with closing(sink), closing(rebuilder.rebuild(recipes, sink)) as results:
        for job, _ in results:
            yield job
            sink.ended(job)
        sink.finish()


def _begun_files(outputs: Mapping[Path, OutputFile], may_exist: bool) -> list[tuple[Path, int]]:
    """Write the heads of files, which are new or those that an earlier run has begun; returns the place of each tensor."""
    places = list[tuple[Path, int]]()
    for path, output in outputs.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "r+b" if may_exist and path.exists() else "xb") as file:
            file.write(output.head)
            file.flush()
            if os.fstat(file.fileno()).st_size > output.size:
                file.truncate(output.size)
        places += [(path, offset) for offset, _ in output.tensors]
    return places


def drop_unfinished(built: Path, weights: Collection[str]) -> None:
    """Remove all that an earlier run left in the work folder where ``built`` is, but the weight files at these paths in it.

    Args:
        built: the file or folder that is built.
        weights: relative to it; of a file, which stays, none.
    """
    for other in (built.with_name("tensors"), built.with_name("scratch")):
        discard(other)
    kept = {built / path for path in weights}
    for path in list(built.rglob("*")) if built.is_dir() else ():
        if path.is_symlink() or not (path.is_dir() or path in kept):
            path.unlink()


def write_others(rebuilder: Rebuilder, folder: Place, scratch: Path) -> None:
    """Write the target's files without weights, indexes last; those that earlier patches give are rebuilt in a scratch folder."""
    base, chain = rebuilder.base, rebuilder.chain
    if base.is_file and any(other.kind != "new" for other in chain[0].others):
        raise BaseMismatchError(f"{base.path}: is one file; give the folder that it lies in, since the patch needs other files too")
    files = _OtherFiles(rebuilder)
    for k, other in enumerate(sorted(chain[-1].others, key=lambda other: is_index(other.path))):
        before = files.before(len(chain) - 1, other.path, scratch / str(k))
        other_files.rebuild(chain[-1], other, before, folder / other.path)


class _OtherFiles:
    """The files without weights of a chain."""

    def __init__(self, rebuilder: Rebuilder) -> None:
        self.base, self.chain = rebuilder.base, rebuilder.chain
        self.by_path = [{other.path: other for other in patch.others} for patch in self.chain]

    def before(self, depth: int, path: str, scratch: Path) -> Place | None:
        """The file ``path`` that patch number ``depth`` starts from: the base's, or one rebuilt in ``scratch``; None if there is none."""
        if depth == 0:
            return self.base.others.get(path)
        other = self.by_path[depth - 1].get(path)
        if other is None:
            return None
        out = scratch / str(depth)
        other_files.rebuild(self.chain[depth - 1], other, self.before(depth - 1, path, scratch), out)
        return out
