"""Checkpoints that ``apply --in-place`` is changing: where its journal lies, and that nobody else takes them for whole.

The journal of a folder is ``.ckptdiff-in-place`` in it; that of a file stands beside it. While ``begun`` is in the journal, the checkpoint
is neither base nor target; before and after that it is whole, and what is there of a journal is a leftover.
"""

from __future__ import annotations

import fcntl
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckptdiff.errors import CheckpointError, OutputError

JOURNAL, BEGUN, LOCK = ".ckptdiff-in-place", "begun", "lock"
"""Names of the journal of a folder, and of two files in each journal."""


def journal_of(path: Path) -> Path:
    """Where the journal of a checkpoint, which exists, is."""
    return path / JOURNAL if os.path.isdir(path) else path.with_name(f".{path.name}{JOURNAL}")


def is_begun(path: Path) -> bool:
    """Whether a checkpoint is being changed, and neither base nor target now."""
    return os.path.lexists(journal_of(path) / BEGUN)


def check_whole(path: str | os.PathLike[str]) -> None:
    """Raise CheckpointError for a path that is, or lies in, a checkpoint that ``apply --in-place`` has begun and not finished to change."""
    path = Path(os.path.abspath(path))
    for place in (path, *path.parents):
        if is_begun(place):
            raise CheckpointError(
                f"{place}: was being changed by ckptdiff apply --in-place, which was interrupted: it is neither the base nor the target. "
                f"Run the same command again to go on: ckptdiff apply {shlex.quote(str(place))} PATCH --in-place"
            )


@contextmanager
def journal_lock(path: Path) -> Iterator[Path]:
    """Make or open the journal of a checkpoint, which no other run uses meanwhile.

    Raises:
        OutputError: another run uses it. OSError: it cannot be made.
    """
    journal = journal_of(path)
    journal.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(journal / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"{path}: another run of ckptdiff apply --in-place is changing it: wait until that has ended") from None
        yield journal
    finally:
        os.close(fd)
