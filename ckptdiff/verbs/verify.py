"""``verify``: problems of a patch, of a base for it, or of files rebuilt from it. It writes nothing."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ckptdiff.checkpoint.reader import open_checkpoint
from ckptdiff.checkpoint.recognition import check_there
from ckptdiff.checkpoint.selection import select
from ckptdiff.errors import CheckpointError, CkptdiffError, FormatError, IntegrityError, cut
from ckptdiff.format.digests import BLOCK
from ckptdiff.format.entry import Entry
from ckptdiff.format.index import OtherFile
from ckptdiff.format.patch_file import PatchFile
from ckptdiff.hub.ids import parse_id
from ckptdiff.hub.repo import Repo, open_repo
from ckptdiff.io.folder import list_folder
from ckptdiff.io.leftovers import if_gone
from ckptdiff.io.parallel import Progress, default_threads, no_progress, run_ordered, sha256_file
from ckptdiff.io.source import LocalFile
from ckptdiff.patching import other_files
from ckptdiff.patching.patch import OpenPatch, open_patch
from ckptdiff.patching.rebuild import Rebuilder, open_base, recipes_of
from ckptdiff.patching.recipes import BaseTensor, PatchedTensor, check_result, digest_of, layers, ranges, tensor_differs


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: ``kind`` as in :mod:`ckptdiff.errors`, and a line that names file and tensor."""

    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """``problems`` found, how many things were ``checked``, and against what."""

    problems: tuple[Problem, ...]
    checked: int
    against_base: bool
    against_target: bool

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(
    patch: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    target: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> VerifyResult:
    """Check a patch alone; with ``base`` also that it gives what it states; with ``target`` also that these are its files (SHA-256).

    All problems found are collected. Changes can be decoded only with the base: without it their stored bytes are checked.

    Raises:
        CheckpointError: the base is not a checkpoint, or the patch does not exist.
    """
    for path in (patch, target):
        if path is not None:
            check_there(path)
    checks: list[Callable[[], CkptdiffError | None]] = []
    found: list[CkptdiffError] = []
    try:
        with open_patch(patch) as opened:
            checks += patch_checks(opened)
            if target is not None:
                checks += target_checks(opened, Path(target))
            if base is None:
                found += _run(checks, threads, progress)
            else:
                with open_base(base, [opened]) as checkpoint:
                    rebuilder = Rebuilder(checkpoint, [opened], 1, no_progress)
                    checks += base_checks(rebuilder, opened)
                    found += _told_apart(rebuilder, list(_run(checks, threads, progress)))
    except CheckpointError:
        raise
    except CkptdiffError as error:  # the container itself is broken: nothing more can be checked
        found.append(error)
    problems = tuple(Problem(error.kind, str(error)) for error in found)
    return VerifyResult(problems, max(len(checks), 1), base is not None, target is not None)


def _run(checks: list[Callable[[], CkptdiffError | None]], threads: int | None, progress: Progress) -> Iterator[CkptdiffError]:
    with closing(run_ordered(checks, threads or default_threads())) as results:
        for done, error in enumerate(results, 1):
            progress("verifying", done, len(checks))
            if error:
                yield error


def _told_apart(rebuilder: Rebuilder, found: list[CkptdiffError]) -> list[CkptdiffError]:
    """One problem instead of one for each tensor where the base is the target already."""
    wrong = [error for error in found if error.kind == "wrong_base"]
    if wrong:
        try:
            rebuilder.explain(recipes_of(rebuilder.outputs()))
        except CkptdiffError as error:
            if error.kind == "already_target":
                return [*(error for error in found if error not in wrong), error]
    return found


def patch_checks(patch: OpenPatch) -> list[Callable[[], CkptdiffError | None]]:
    """Checks of payloads, stored files and the patch files' SHA-256; what :func:`open_patch` checks is not repeated."""
    checks: list[Callable[[], CkptdiffError | None]] = []
    for file in patch.files:
        checks += [partial(_payload_error, file, entry) for entry in file.table.entries if entry.has_payload]
    if patch.index:
        checks += [partial(_file_error, patch.path / shard.path, shard.size, shard.sha256) for shard in patch.index.shards]
    return checks + [partial(_other_error, patch, other) for other in patch.others]


def _payload_error(file: PatchFile, entry: Entry) -> CkptdiffError | None:
    error = file.payload_error(entry)
    if error or entry.kind != "new":
        return error
    recipe = PatchedTensor(file, entry, None)
    try:
        for start in range(0, entry.nbytes, BLOCK):
            recipe.build(start, start + BLOCK)
        check_result(recipe)
    except (FormatError, IntegrityError) as error:
        return error
    return None


def _other_error(patch: OpenPatch, other: OtherFile) -> CkptdiffError | None:
    return other_files.stored_error(patch, other) or (_decoding_error(patch, other, None) if other.kind == "new" else None)


DECODING = threading.Lock()
"""Files without weights are decoded one at a time: each may need a window of 128 MiB, or old and new of 64 MiB."""


def _decoding_error(patch: OpenPatch, other: OtherFile, base: Path | None) -> CkptdiffError | None:
    with DECODING:
        return other_files.decoding_error(patch, other, base)


def target_checks(patch: OpenPatch, target: Path) -> list[Callable[[], CkptdiffError | None]]:
    """Checks of size and SHA-256 of every file that the patch gives."""
    if patch.index is None:
        name = patch.files[0].metadata.target_path
        return [partial(_weights_error, patch, patch.files[0], target / name if os.path.isdir(target) else target)]
    if not os.path.isdir(target):
        raise CheckpointError(f"{target}: is one file; give the folder that {patch.path} rebuilds")
    weights = [partial(_weights_error, patch, file, target / file.metadata.target_path) for file in patch.files]
    return [*weights, *(partial(_file_error, target / other.path, other.size, other.sha256) for other in patch.others)]


def _weights_error(patch: OpenPatch, file: PatchFile, path: Path) -> CkptdiffError | None:
    """By SHA-256; a target that was never a file has none, and goes by header and tensor digests."""
    metadata = file.metadata
    if metadata.target_sha256 is not None:
        return _file_error(path, metadata.target_size, metadata.target_sha256)
    try:
        with open_checkpoint(path) as checkpoint:
            weights = checkpoint.weights[0]
            if weights.header.raw != file.header.raw:
                return IntegrityError(f"{path}: its header is not the one that {patch.path} gives")
            for tensor, entry in zip(weights.tensors, file.table.entries, strict=True):
                found, expected = digest_of(tensor), patch.entries[metadata.target_scope, entry.of or entry.name][1].digest
                if found != expected:
                    return IntegrityError(f"{path}: tensor {cut(tensor.name)} has the digest {found.hex()}, expected {expected.hex()}")
    except CheckpointError as error:
        return error
    return None


def verify_against_hub(checkpoint: str | os.PathLike[str], hub_id: str, *, threads: int | None = None) -> VerifyResult:
    """Compare a folder's files (or a file) with what the Hub states of a repo's, and fetch none: SHA-256, or git's SHA-1 of small ones.

    Files here that the repo lacks are problems, and weight files there that are not here.

    Raises:
        CheckpointError: it does not exist, or the id is none. HubError: the repo cannot be read.
    """
    path, wanted = Path(checkpoint), parse_id(hub_id)
    if wanted is None:
        raise CheckpointError(f"{hub_id!r} is not an id on the Hub: expected org/name or org/name@revision")
    if not os.path.exists(path):
        raise CheckpointError(f"{path}: no such file or folder{if_gone(path)}")
    repo = open_repo(wanted)
    files = select(list_folder(path, follow_links=True).files)[0] if os.path.isdir(path) else [path.name]
    checks: list[Callable[[], CkptdiffError | None]] = [
        partial(_hub_error, path / name if os.path.isdir(path) else path, name, repo) for name in files
    ]
    found = list(_run(checks, threads, no_progress))
    for name in repo.files:
        if os.path.isdir(path) and name.endswith(".safetensors") and name not in files:
            found.append(CheckpointError(f"{path / name}: is missing, {repo.pinned} has it"))
    return VerifyResult(tuple(Problem(error.kind, str(error)) for error in found), len(checks), False, True)


def _hub_error(path: Path, name: str, repo: Repo) -> CkptdiffError | None:
    row = repo.files.get(name)
    if row is None:
        return IntegrityError(f"{path}: {repo.pinned} has no such file")
    if row.sha256 is not None:
        return _file_error(path, row.size, row.sha256)
    data = path.read_bytes()
    found = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    if found == row.blob_id:
        return None
    return IntegrityError(f"{path}: as git counts it its SHA-1 is {found}, expected {row.blob_id}: not the file in {repo.pinned}")


def _file_error(path: Path, size: int, sha256: str) -> CkptdiffError | None:
    try:
        file = LocalFile(path)
    except CheckpointError as error:
        return error
    try:
        if file.size != size:
            return IntegrityError(f"{path}: has {file.size} bytes, expected {size}")
        found = sha256_file(file)
        return None if found == sha256 else IntegrityError(f"{path}: its SHA-256 is {found}, expected {sha256}")
    except CheckpointError as error:
        return error
    finally:
        file.close()


def base_checks(rebuilder: Rebuilder, patch: OpenPatch) -> list[Callable[[], CkptdiffError | None]]:
    """Checks that the base's tensors and files are those that the patch needs, and that the changes to them give what it states."""
    checks: list[Callable[[], CkptdiffError | None]] = [
        partial(_tensor_error, rebuilder, file, entry)
        for file in patch.files
        for entry in file.table.entries
        if entry.kind in ("same", "delta")
    ]
    return checks + [partial(_base_file_error, rebuilder, patch, other) for other in patch.others if other.kind != "new"]


def _tensor_error(rebuilder: Rebuilder, file: PatchFile, entry: Entry) -> CkptdiffError | None:
    try:
        recipe = rebuilder.recipe(0, file, entry)
        base = layers(recipe)[0]
        try:
            for start, stop, _ in ranges(recipe):
                recipe.build(start, stop)
            rebuilder.check(recipe)
        except (FormatError, IntegrityError) as error:
            if isinstance(base, BaseTensor) and (found := rebuilder.once.digest_of(base.tensor)) != base.digest:
                return rebuilder.wrong_base(rebuilder.chain[0], tensor_differs(base, found))
            return error
    except CkptdiffError as error:
        return error
    return None


def _base_file_error(rebuilder: Rebuilder, patch: OpenPatch, other: OtherFile) -> CkptdiffError | None:
    base = rebuilder.base.others.get(other.path)
    return other_files.base_error(other, base) or (_decoding_error(patch, other, base) if other.kind == "delta" else None)
