"""Work folders: made, locked and removed; those that killed runs have left are mended. :mod:`ckptdiff.io.leftovers`: what they hold."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from ckptdiff.errors import OutputError
from ckptdiff.io.durable import move_new, sync
from ckptdiff.io.leftovers import MARKER, OLD, RESULT, is_marked, work_folders
from ckptdiff.io.signals import held

SPARE = 8
"""Open files kept back to remove a work folder with when a process may open no more: one for each level of it, and one."""

NO_LOCKS = {errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}
"""How some network file systems say that they have no locks. What a killed run leaves there stays."""


@dataclass(slots=True)
class Work:
    """A work folder of this run. ``out``: what is built in it; ``done``: once that is in its place, words that say so."""

    path: Path
    out: Path | None
    done: str = ""
    files: list[int] = field(default_factory=list)


@contextmanager
def work_folder(parent: Path, prefix: str, out: Path | None = None) -> Iterator[Work]:
    """A new folder in ``parent``, removed at the end; and so are those of the same prefix whose runs were killed.

    Raises:
        OSError: it cannot be made. OutputError: it, or one that a killed run left, cannot be removed without loss.
        KeyboardInterrupt: with words that say what is where if the output is in its place, or something was left.
    """
    mend(parent, prefix, out)
    work, left = Work(Path(), out), ""
    try:
        try:
            with held():
                _make(work, parent, prefix)
            yield work
        finally:
            with held():
                left = _end(work)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("; ".join(filter(None, (work.done, left)))) from None
    except Exception as error:
        if left:
            raise OutputError(f"{getattr(error, 'strerror', None) or error}; {left}") from error
        raise
    if left:
        raise OutputError("; ".join(filter(None, (work.done, left))))


def _make(work: Work, parent: Path, prefix: str) -> None:
    while not work.files:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            work.files += _marked(folder)
        except BaseException:
            (folder / MARKER).unlink(missing_ok=True)
            with suppress(FileNotFoundError):
                folder.rmdir()
            raise
        work.path = folder


def _marked(folder: Path) -> list[int]:
    """Mark a new folder: the locked marker and the spare files; nothing if another run took the folder for one that was left."""
    files: list[int] = []
    try:
        files.append(os.open(folder / MARKER, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        if _lock(files[0]) is not False and os.path.samestat(os.fstat(files[0]), (folder / MARKER).lstat()):
            for _ in range(SPARE):
                files.append(os.dup(files[0]))  # one by one, so that none is lost when there are no more
            return files
    except FileNotFoundError:
        pass
    except BaseException:
        _close(files)
        raise
    _close(files)
    return []


def _lock(fd: int) -> bool | None:
    """Whether a marker is now locked by us: False if its run has it, None if there are no locks here."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None
    return True


def _close(files: Iterable[int]) -> None:
    for fd in files:
        os.close(fd)


def _end(work: Work) -> str:
    """Put back or remove what is in this run's folder; returns words that say what could not be, and why."""
    if not work.files:
        return ""
    _close(work.files[1:])
    left, step = "", f"{work.path / OLD}, the old output, could not be moved back"
    try:
        left = _put_back(work.path, work.out)
        if not left:
            step = f"{work.path} could not be removed"
            _empty(work.path)
    except OSError as error:
        left = f"{step} ({error.strerror}): do that by hand"
    os.close(work.files[0])
    if not left:
        _remove(work.path)
    return left


def mend(parent: Path, prefix: str, out: Path | None) -> None:
    """Put back or remove what killed runs left in ``parent``; a run that is alive has its marker locked.

    Raises:
        OSError: an old output cannot be put back. OutputError: nor can this one, as something else is in its place.
    """
    for folder in work_folders(parent, prefix):
        with held():
            if is_marked(folder):
                _mend(folder, out)
            else:
                with suppress(OSError):  # gone; or it holds something, so it is not ours
                    if stat.S_IMODE(folder.lstat().st_mode) == 0o700:  # its run was killed before the marker was there, or after
                        folder.rmdir()


def _mend(folder: Path, out: Path | None) -> None:
    try:
        lock = os.open(folder / MARKER, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, PermissionError):  # its run has just ended; or it is another user's
        return
    try:
        ours = _lock(lock)
        left = "" if ours is False else _put_back(folder, out)
        if left:
            raise OutputError(left)
        if ours:
            _empty(folder)
    except OSError:
        if os.path.lexists(folder / OLD):
            raise
        ours = None  # what is left is nothing that anybody needs
    finally:
        os.close(lock)
    if ours:
        _remove(folder)


def _put_back(folder: Path, out: Path | None) -> str:
    """Move an old output back where nothing is in its place; returns words that say where it is if something else is there."""
    old = folder / OLD
    if out is None or not os.path.lexists(old):
        return ""
    if not os.path.lexists(out):
        move_new(old, out)
        sync(out.parent)
    elif os.path.lexists(folder / RESULT):  # else that is in its place, and the old one is not needed
        return f"{out}: the old one is in {old}, as something else came into its place when it was replaced: move either away"
    return ""


def _empty(folder: Path) -> None:
    """Remove all but the marker, which says to the next run, should this one be killed now, that the rest may go.

    An old output that is not needed any more gets another name first: nobody must put back what is half removed.
    """
    if os.path.lexists(folder / OLD):
        os.rename(folder / OLD, folder / RESULT)
    for path in folder.iterdir():
        if path.name == MARKER:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _remove(folder: Path) -> None:
    """Remove a folder that holds nothing but a marker, which nobody has open: NFS would keep it by another name."""
    with suppress(OSError):  # another run was faster; or something is left, which that will see to
        (folder / MARKER).unlink(missing_ok=True)
        folder.rmdir()
