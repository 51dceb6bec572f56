"""``verify --hub`` compares the files of a checkpoint with the digests that the Hub states. It writes and fetches nothing."""

from __future__ import annotations

import hashlib
import os
from functools import partial
from pathlib import Path

from ckptdiff.checkpoint.selection import select
from ckptdiff.errors import CheckpointError, CkptdiffError, IntegrityError
from ckptdiff.hub.ids import parse_id
from ckptdiff.hub.repo import Repo, open_repo
from ckptdiff.io.folder import list_folder
from ckptdiff.io.in_place import check_whole
from ckptdiff.io.leftovers import if_gone
from ckptdiff.io.parallel import ThreadWorkers, default_threads, no_progress
from ckptdiff.io.places import local_path
from ckptdiff.verbs.verify import Check, Problem, VerifyResult, file_error, run_checks


def verify_against_hub(checkpoint: str | os.PathLike[str], hub_id: str, *, threads: int | None = None) -> VerifyResult:
    """Compare a checkpoint's files with the digests that the Hub states for those of a repo, without fetching any.

    The digests are SHA-256, or for small files git's SHA-1. Files that the repo lacks are problems, and so are weight files that only the
    repo has.

    Args:
        checkpoint: a folder, or a file.
        hub_id: ``org/name`` or ``org/name@revision``.
        threads: number of threads.

    Raises:
        CheckpointError: the checkpoint does not exist, or ``hub_id`` is not an id on the Hub. HubError: the repo cannot be read.
    """
    path, wanted = local_path(checkpoint, "files are compared with a repo"), parse_id(hub_id)
    if wanted is None:
        raise CheckpointError(f"{hub_id!r} is not an id on the Hub: expected org/name or org/name@revision")
    if not os.path.exists(path):
        raise CheckpointError(f"{path}: no such file or folder{if_gone(path)}")
    check_whole(path)
    repo = open_repo(wanted)
    files = select(list_folder(path, follow_links=True).files)[0] if os.path.isdir(path) else [path.name]
    places = [(path / name if os.path.isdir(path) else path, name) for name in files]
    checks = [Check(partial(_hub_error, place, name, repo), str(place), 0) for place, name in places]
    errors = list(run_checks(checks, ThreadWorkers(threads or default_threads()), no_progress))
    for name in repo.files:
        if os.path.isdir(path) and name.endswith(".safetensors") and name not in files:
            errors.append(CheckpointError(f"{path / name}: is missing, {repo.pinned} has it"))
    return VerifyResult(tuple(Problem(error.kind, str(error)) for error in errors), len(checks), False, False, against_hub=True)


def _hub_error(path: Path, name: str, repo: Repo) -> CkptdiffError | None:
    """The problem of a file that a repo should have under a name."""
    row = repo.files.get(name)
    if row is None:
        return IntegrityError(f"{path}: {repo.pinned} has no such file")
    if row.sha256 is not None:
        return file_error(path, row.size, row.sha256)
    data = path.read_bytes()
    sha1 = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    if sha1 == row.blob_id:
        return None
    return IntegrityError(f"{path}: its SHA-1, as git computes it, is {sha1}, expected {row.blob_id}: not the file in {repo.pinned}")
