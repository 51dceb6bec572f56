"""Checkpoints of which a chain has the files: compared with it, and removed once it has them."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ckptdiff.errors import CheckpointError, IntegrityError
from ckptdiff.io.parallel import sha256_file
from ckptdiff.io.source import LocalFile
from ckptdiff.patching.patch import OpenPatch


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that a patch rebuilds."""

    path: str
    """Relative to the checkpoint; empty where that is one file."""
    size: int
    """Bytes."""
    sha256: str
    """In hexadecimal."""


def stored_files(patch: OpenPatch) -> list[StoredFile]:
    """All files that a patch of files rebuilds."""
    folder = patch.index is not None
    weights = [
        StoredFile(file.metadata.target_path if folder else "", file.metadata.target_size, file.metadata.target_sha256 or "")
        for file in patch.files
    ]
    return weights + [StoredFile(other.path, other.size, other.sha256) for other in patch.others]


def check_same(checkpoint: Path, files: list[StoredFile], what: str) -> bool:
    """Whether a checkpoint has all of the files. Those that are missing may have been removed by a run that was killed.

    Raises:
        IntegrityError: a file is there with other bytes; ``what`` says in the message what has the others.
        CheckpointError: no file is there.
    """
    there = [file for file in files if os.path.lexists(checkpoint / file.path)]
    if files and not there and not checkpoint.is_dir():
        raise CheckpointError(f"{checkpoint}: no such file or folder")
    for file in there:
        if not _is(checkpoint / file.path, file):
            raise IntegrityError(f"{checkpoint / file.path}: is not the file that {what} has: a chain keeps one checkpoint a step")
    return len(there) == len(files)


def remove(checkpoint: Path, files: list[StoredFile]) -> int:
    """Remove the files of a checkpoint, each after a look at its SHA-256, and folders that become empty. Everything else stays.

    Returns:
        How many were removed.

    Raises:
        IntegrityError: a file was changed after it went into the chain; it is left. CheckpointError: one cannot be read or removed.
    """
    removed = 0
    for file in files:
        path = checkpoint / file.path
        if not os.path.lexists(path):
            continue
        if not _is(path, file):
            raise IntegrityError(f"{path}: was changed after it went into the chain, and was left as it is")
        try:
            path.unlink()
        except OSError as error:
            raise CheckpointError(f"{path}: is in the chain, but cannot be removed: {error.strerror}") from None
        removed += 1
    if checkpoint.is_dir():
        folders = {checkpoint / parent for file in files for parent in Path(file.path).parents}
        for folder in sorted(folders, key=lambda folder: -len(folder.parts)):
            try:
                folder.rmdir()
            except OSError:  # it holds something else
                continue
    return removed


def _is(path: Path, file: StoredFile) -> bool:
    with closing(LocalFile(path)) as source:
        return source.size == file.size and sha256_file(source) == file.sha256
