"""``verify`` finds problems of a patch, of a base for it, or of files that were rebuilt from it. It writes nothing."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ckptdiff.checkpoint.dcp_metadata import is_dcp_folder
from ckptdiff.checkpoint.reader import open_checkpoint
from ckptdiff.checkpoint.recognition import check_exists
from ckptdiff.errors import CheckpointError, CkptdiffError, IntegrityError, cut
from ckptdiff.format.entry import Entry
from ckptdiff.format.index import OtherFile
from ckptdiff.format.patch_file import PatchFile
from ckptdiff.io.folder import list_store
from ckptdiff.io.in_place import check_whole
from ckptdiff.io.parallel import Progress, Threads, ThreadWorkers, Work, Workers, default_threads, no_progress, sha256_file
from ckptdiff.io.places import Place, open_file, place_of
from ckptdiff.io.store_path import StorePath
from ckptdiff.io.workers import check_no_ray_with_stores, open_workers
from ckptdiff.patching import other_files
from ckptdiff.patching.build import digest_of
from ckptdiff.patching.patch import OpenPatch, open_patch
from ckptdiff.patching.rebuild import Rebuilder, open_base
from ckptdiff.patching.source_folder import ClosableSource
from ckptdiff.patching.tensor_checks import BaseCheck, PayloadCheck, find_all


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong."""

    kind: str
    """Kind of the error, see :mod:`ckptdiff.errors`."""
    message: str
    """A line that names the file and the tensor."""


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """The result of :func:`verify`, and of :func:`~ckptdiff.verbs.verify_hub.verify_against_hub`."""

    problems: tuple[Problem, ...]
    checked: int
    """Number of checks."""
    against_base: bool
    """Whether a base was checked."""
    against_target: bool
    """Whether rebuilt files were checked."""
    against_hub: bool = False
    """Whether a checkpoint was compared with a repo on the Hub, without any patch."""

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems


def verify(
    patch: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    target: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    ray: str | None = None,
    progress: Progress = no_progress,
) -> VerifyResult:
    """Check a patch, and a base for it, or files that were rebuilt from it.

    All problems are collected. Without the base, changes cannot be decoded, and only their stored bytes are checked.

    Args:
        patch: a patch file or folder, the URL of one, or an id on the Hub.
        base: a checkpoint; check that the patch fits it, and gives what it states.
        target: a checkpoint; check by SHA-256 that its files are those that the patch gives.
        threads, ray: who does the work, as in :func:`ckptdiff.make`.
        progress: called with what is being done, how much is done, and how much there is.

    Raises:
        CheckpointError: the base is not a checkpoint, or the patch does not exist. StoreError: a store cannot be read.
    """
    for path in (patch, target):
        if path is not None:
            check_exists(path)
            check_whole(path)
    check_no_ray_with_stores(ray, *(path for path in (patch, base, target) if path is not None))
    checks: list[Check] = []
    errors: list[CkptdiffError] = []
    try:
        with open_patch(patch) as opened, open_workers(threads, ray) as workers:
            checks += patch_checks(opened)
            if target is not None:
                checks += target_checks(opened, place_of(target))
            if base is None:
                errors += run_checks(checks, workers, progress)
            else:
                with open_base(base, [opened]) as checkpoint:
                    rebuilder = Rebuilder(checkpoint, [opened], Threads(1))
                    checks += base_checks(rebuilder, opened)
                    errors += _merge_already_target(rebuilder, list(run_checks(checks, workers, progress)))
    except CheckpointError:
        raise
    except CkptdiffError as error:  # the container itself is broken: nothing more can be checked
        errors.append(error)
    problems = tuple(Problem(error.kind, str(error)) for error in errors)
    return VerifyResult(problems, max(len(checks), 1), base is not None, target is not None)


@dataclass(frozen=True, slots=True)
class Check:
    """Something to check."""

    find: Callable[[], CkptdiffError | None]
    """Finds its problem, if there is one."""
    about: str
    """What messages call it."""
    nbytes: int
    """About how many bytes are read for it."""


@dataclass(frozen=True, slots=True)
class _CheckJob:
    """A check to do."""

    number: int
    nbytes: int


class _Checking(Work[_CheckJob, CkptdiffError | None]):
    """Does checks."""

    def __init__(self, checks: list[Check]) -> None:
        self.checks = checks

    def __call__(self, job: _CheckJob) -> CkptdiffError | None:
        return self.checks[job.number].find()

    def many(self, jobs: Sequence[_CheckJob]) -> list[CkptdiffError | None]:
        """As of :class:`Work`: small tensors are checked together."""
        return find_all([self.checks[job.number].find for job in jobs])

    def about(self, job: _CheckJob) -> str:
        """As of :class:`Work`."""
        return self.checks[job.number].about


def run_checks(checks: list[Check], workers: Workers, progress: Progress) -> Iterator[CkptdiffError]:
    """The problems that checks find, in the order of the checks."""
    execute = workers.executor(sum(check.nbytes for check in checks))
    with closing(execute(_Checking(checks), (_CheckJob(k, check.nbytes) for k, check in enumerate(checks)))) as results:
        for done, error in enumerate(results, 1):
            progress("verifying", done, len(checks))
            if error:
                yield error


def _merge_already_target(rebuilder: Rebuilder, errors: list[CkptdiffError]) -> list[CkptdiffError]:
    """Where the base is the target already, one problem instead of one for each tensor."""
    wrong = [error for error in errors if error.kind == "wrong_base"]
    if wrong:
        try:
            rebuilder.raise_if_target()
        except CkptdiffError as error:
            if error.kind == "already_target":
                return [*(error for error in errors if error not in wrong), error]
    return errors


def patch_checks(patch: OpenPatch) -> list[Check]:
    """Checks of payloads, of stored files and of the patch files' SHA-256. What :func:`open_patch` has checked is not checked again."""
    checks: list[Check] = []
    for file in patch.files:
        checks += [_entry_check(PayloadCheck(file, entry), file, entry) for entry in file.table.entries if entry.has_payload]
    if patch.index and patch.folder:
        for shard in patch.index.shards:
            opening = partial(patch.folder.open, shard.path)
            checks.append(_file_check(opening, str(patch.path / shard.path), shard.size, shard.sha256))
    return checks + [Check(partial(_other_error, patch, other), f"{patch.path}: {other.path}", other.size) for other in patch.others]


def _entry_check(find: Callable[[], CkptdiffError | None], file: PatchFile, entry: Entry) -> Check:
    """A check of a table entry."""
    return Check(find, f"{file.source.name}: tensor {cut(entry.name)}", entry.nbytes)


def _file_check(opening: Callable[[], ClosableSource], about: str, size: int, sha256: str) -> Check:
    """A check of a file's size and SHA-256. It is opened here, so that other processes tell whether they see the same file."""
    try:
        return Check(partial(_opened_error, opening(), size, sha256), about, size)
    except CheckpointError as error:
        return Check(partial(_known_error, error), about, 0)


def _known_error(error: CkptdiffError) -> CkptdiffError:
    return error


def _other_error(patch: OpenPatch, other: OtherFile) -> CkptdiffError | None:
    return other_files.stored_error(patch, other) or (_decoding_error(patch, other, None) if other.kind == "new" else None)


DECODING_LOCK = threading.Lock()
"""Files without weights are decoded one at a time: each may need a window of 128 MiB, or 64 MiB for each of its old and new content."""


def _decoding_error(patch: OpenPatch, other: OtherFile, base: Place | None) -> CkptdiffError | None:
    with DECODING_LOCK:
        return other_files.decoding_error(patch, other, base)


def target_checks(patch: OpenPatch, target: Place) -> list[Check]:
    """Checks of size and SHA-256 of every file that the patch gives."""
    if isinstance(target, StorePath):
        listed = list_store(target).files
        return _target_checks(patch, target, "" not in listed, lambda name: listed.get(name) or target / name)
    return _target_checks(patch, target, os.path.isdir(target), lambda name: target / name)


def check_built(patch: OpenPatch, built: Place, threads: int | None, progress: Progress) -> None:
    """Raise IntegrityError unless a target that was built, and is not in its place yet, has the sizes and SHA-256 that its patch states."""
    checks = _target_checks(patch, built, patch.index is not None, lambda name: built / name)
    for error in run_checks(checks, ThreadWorkers(threads or default_threads()), progress):
        raise IntegrityError(f"the target was rebuilt, but is not what {patch.path} states: {error}")


def _target_checks(patch: OpenPatch, target: Place, is_folder: bool, place: Callable[[str], Place]) -> list[Check]:
    """As :func:`target_checks`; ``place``: where a file is, by its path in the target."""
    if patch.index is None:
        name = patch.files[0].metadata.target_path
        return [_weights_check(patch, patch.files[0], place(name) if is_folder else target)]
    if isinstance(target, Path) and is_dcp_folder(target):
        return [Check(partial(_dcp_error, patch, target), str(target), 0)]
    if not is_folder:
        raise CheckpointError(f"{target}: is one file; give the folder that {patch.path} rebuilds")
    weights = [_weights_check(patch, file, place(file.metadata.target_path)) for file in patch.files]
    others = ((place(other.path), other) for other in patch.others)
    return [*weights, *(_file_check(partial(open_file, path), str(path), other.size, other.sha256) for path, other in others)]


def _weights_check(patch: OpenPatch, file: PatchFile, path: Place) -> Check:
    """A check of a rebuilt weight file."""
    metadata = file.metadata
    if metadata.target_sha256 is not None:
        return _file_check(partial(open_file, path), str(path), metadata.target_size, metadata.target_sha256)
    return Check(partial(_weights_error, patch, file, path), str(path), metadata.target_size)


def _weights_error(patch: OpenPatch, file: PatchFile, path: Place) -> CkptdiffError | None:
    """The problem of a rebuilt weight file that was never a file, and so has no SHA-256: its header and tensor digests are compared."""
    metadata = file.metadata
    try:
        with open_checkpoint(path) as checkpoint:
            weights = checkpoint.weights[0]
            if weights.header.raw != file.header.raw:
                return IntegrityError(f"{path}: its header is not the one that {patch.path} gives")
            for tensor, entry in zip(weights.tensors, file.table.entries, strict=True):
                given = entry if entry.of is None else patch.entries[metadata.target_scope, entry.of][1]
                digest, expected = digest_of(tensor), given.digest
                if digest != expected:
                    return IntegrityError(f"{path}: tensor {cut(tensor.name)} has the digest {digest.hex()}, expected {expected.hex()}")
    except CheckpointError as error:
        return error
    return None


def _dcp_error(patch: OpenPatch, target: Path) -> CkptdiffError | None:
    """The problem of a folder of torch.distributed.checkpoint: as one file it must be the only weight file that the patch gives."""
    wanted = {file.metadata.target_path: file.metadata.target_sha256 for file in patch.files}
    try:
        with open_checkpoint(target) as checkpoint:
            found = {file.path: sha256_file(file.file) for file in checkpoint.weights}
    except CheckpointError as error:
        return error
    if found == wanted:
        return None
    return IntegrityError(f"{target}: read as one safetensors file it has the SHA-256 {found}, expected {wanted}: other tensors, or values")


def file_error(path: Place, size: int, sha256: str) -> CkptdiffError | None:
    """The problem of a file that should have a size and a SHA-256."""
    try:
        return _opened_error(open_file(path), size, sha256)
    except CheckpointError as error:
        return error


def _opened_error(file: ClosableSource, size: int, sha256: str) -> CkptdiffError | None:
    """As :func:`file_error`, of a file that is open; it is closed."""
    try:
        if file.size != size:
            return IntegrityError(f"{file.name}: has {file.size} bytes, expected {size}")
        computed = sha256_file(file)
        return None if computed == sha256 else IntegrityError(f"{file.name}: its SHA-256 is {computed}, expected {sha256}")
    except CheckpointError as error:
        return error
    finally:
        file.close()


def base_checks(rebuilder: Rebuilder, patch: OpenPatch) -> list[Check]:
    """Checks that the base's tensors and files are those that the patch needs, and that its changes to them give what it states."""
    entries = ((file, entry) for file in patch.files for entry in file.table.entries if entry.has_base)
    checks = [_entry_check(BaseCheck(rebuilder, file, entry), file, entry) for file, entry in entries]
    others = (other for other in patch.others if other.kind != "new")
    return checks + [Check(partial(_base_file_error, rebuilder, patch, o), f"{patch.path}: {o.path}", o.size) for o in others]


def _base_file_error(rebuilder: Rebuilder, patch: OpenPatch, other: OtherFile) -> CkptdiffError | None:
    base = rebuilder.base.others.get(other.path)
    return other_files.base_error(other, base) or (_decoding_error(patch, other, base) if other.kind == "delta" else None)
