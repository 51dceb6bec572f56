"""Work folders: made, locked and removed; those of killed runs are cleaned up. What they hold: :mod:`ckptdiff.io.leftovers`."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from ckptdiff.errors import OutputError
from ckptdiff.io.durable import move_new, sync
from ckptdiff.io.leftovers import MARKER, OLD, RESULT, is_marked, work_folders
from ckptdiff.io.signals import held
from ckptdiff.io.unit_log import UnitLog, is_unfinished, kept_in
from ckptdiff.machine import machine_error

RESERVED_DESCRIPTORS = 8
"""File descriptors kept back to remove a work folder with when the process may open no more: one for each level of it, and one."""

NO_LOCKS = {errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}
"""How some network file systems say that they have no locks. What a killed run leaves there is not removed."""


@dataclass(slots=True)
class Work:
    """A work folder of this run."""

    path: Path
    out: Path | None
    """The output that is built in it, if it has one."""
    log: UnitLog | None = None
    """The log of finished units, if a later run may go on with the work."""
    done: str = ""
    """Once the output is in its place: words for a message that say so."""
    files: list[int] = field(default_factory=list)
    """Descriptors of the marker: the first has the lock, the others are kept in reserve."""

    def take(self, folder: Path, lock: int) -> bool:
        """Take the folder of a killed run, of which ``lock`` is the locked marker, if its work is to be gone on with."""
        if self.files or self.log is None or not self.log.is_work_of(folder):
            return False
        for _ in range(1 + RESERVED_DESCRIPTORS):
            self.files.append(os.dup(lock))
        self.path = folder
        return True


@contextmanager
def work_folder(parent: Path, prefix: str, out: Path | None = None, log: UnitLog | None = None) -> Iterator[Work]:
    """A new work folder, which is removed at the end of the block. Those of killed runs are cleaned up before.

    With a log the folder of a killed run of the same work is taken instead, if there is one; and after an interrupt it stays, if a unit
    is finished.

    Args:
        parent: the folder to make it in.
        prefix: how its name begins; see :func:`ckptdiff.io.leftovers.work_prefix`.
        out: the output that is built in it.
        log: the log of its finished units.

    Raises:
        OSError: it cannot be made. OutputError: it, or one that a killed run left, cannot be removed without losing the old output.
        KeyboardInterrupt: with words that say where the outputs are, if the new one is in its place or something was left.
    """
    work, left = Work(Path(), out, log), ""
    try:
        try:
            clean_up(parent, prefix, out, work.take)
            with held():
                _make(work, parent, prefix)
            if log is not None:
                log.start(work.path)
            yield work
        except KeyboardInterrupt:
            with held():
                left = _keep(work) or _end(work)
            raise
        except BaseException:
            with held():
                left = _end(work)
            raise
        with held():
            left = _end(work)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("; ".join(filter(None, (str(error), work.done, left)))) from None
    except Exception as error:
        if left:
            lacking = machine_error(error)
            kind, cause = (type(lacking), str(lacking)) if lacking else (OutputError, getattr(error, "strerror", None) or str(error))
            raise kind(f"{cause or type(error).__name__}; {left}") from error
        raise
    if left:
        raise OutputError("; ".join(filter(None, (work.done, left))))


def _make(work: Work, parent: Path, prefix: str) -> None:
    """Make the folder of a run, and mark it."""
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
    """Mark a new folder as that of a live run.

    Returns:
        Descriptors as for :attr:`Work.files`; none if another run took the folder for a leftover and has removed it.
    """
    files: list[int] = []
    try:
        files.append(os.open(folder / MARKER, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        if _lock(files[0]) is not False and _is_marker(files[0], folder):
            for _ in range(RESERVED_DESCRIPTORS):
                files.append(os.dup(files[0]))  # one by one, so that those before are closed if one fails
            return files
    except FileNotFoundError:
        pass
    except BaseException:
        _close(files)
        raise
    _close(files)
    return []


def _is_marker(fd: int, folder: Path) -> bool:
    """Whether a descriptor is that of the marker that a folder has now; raises FileNotFoundError if it has none."""
    return os.path.samestat(os.fstat(fd), (folder / MARKER).lstat())


def _lock(fd: int) -> bool | None:
    """Lock a marker: True if that worked, False if its run is alive and has it locked, None if the file system has no locks."""
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
    """Close descriptors."""
    for fd in files:
        os.close(fd)


def _keep(work: Work) -> str:
    """Leave the folder to a later run, if that can go on with it; returns words that say so."""
    if work.log is None or not work.files or work.done or os.path.lexists(work.path / OLD):
        return ""
    kept = work.log.kept()
    if kept:
        _close(work.files)
        work.log.close()
    return kept


def _end(work: Work) -> str:
    """Put the old output back, or remove what is in this run's folder; returns words that say which of it failed, and why."""
    if work.log is not None:
        work.log.close()
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


def spare_unfinished(folder: Path, lock: int) -> bool:
    """For :func:`clean_up`: leaves unfinished work where it is."""
    return is_unfinished(folder)


def unfinished_bytes(parent: Path, prefix: str, out: Path) -> int:
    """Bytes on the disk of unfinished work of an output, which a run that writes it goes on with or removes; raises OSError."""
    sizes = list[int]()

    def count(folder: Path, lock: int) -> bool:
        sizes.extend(path.lstat().st_blocks * 512 for path in folder.rglob("*"))
        return True

    clean_up(parent, prefix, out, count)
    return sum(sizes)


def kept_of(parent: Path, prefix: str, out: Path) -> str:
    """Words for a message about unfinished work of an output that an earlier run has left; empty if there is none. Raises OSError."""
    folders = list[Path]()

    def note(folder: Path, lock: int) -> bool:
        if is_unfinished(folder):
            folders.append(folder)
        return True

    clean_up(parent, prefix, out, note)
    return "; ".join(map(kept_in, folders))


def discard(path: Path) -> None:
    """Remove a file or folder of this run, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def clean_up(parent: Path, prefix: str, out: Path | None, spare: Callable[[Path, int], bool] = lambda folder, lock: False) -> None:
    """Put back or remove what killed runs left in ``parent``. A run that is alive has its marker locked.

    Args:
        parent, prefix, out: as of :func:`work_folder`.
        spare: told a folder that has no old output, and a descriptor of its locked marker; whether the folder stays.

    Raises:
        OSError: an old output cannot be put back. OutputError: it cannot be put back, as something else is in its place.
    """
    for folder in work_folders(parent, prefix):
        with held():
            if is_marked(folder):
                _clean_up_folder(folder, out, spare)
            else:  # its run was killed before it had made the marker, or after it had removed that; or the folder is not ours
                with suppress(OSError):  # the folder is gone, or is not empty
                    if stat.S_IMODE(folder.lstat().st_mode) == 0o700:
                        folder.rmdir()


def _clean_up_folder(folder: Path, out: Path | None, spare: Callable[[Path, int], bool]) -> None:
    """Put back or remove what is in a marked folder, unless its run is alive."""
    try:
        lock = os.open(folder / MARKER, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, PermissionError):  # its run has just ended, or it is another user's
        return
    try:
        ours = _lock(lock)
        if ours and not os.path.lexists(folder / OLD) and _is_marker(lock, folder) and spare(folder, lock):
            return
        left = "" if ours is False else _put_back(folder, out)
        if left:
            raise OutputError(left)
        if ours:
            _empty(folder)
    except OSError:
        if os.path.lexists(folder / OLD):
            raise
        ours = None  # nobody needs what is left
    finally:
        os.close(lock)
    if ours:
        _remove(folder)


def _put_back(folder: Path, out: Path | None) -> str:
    """Move an old output back, unless something is in its place; returns words that say where it is if that is not the new output."""
    old = folder / OLD
    if out is None or not os.path.lexists(old):
        return ""
    if not os.path.lexists(out):
        move_new(old, out)
        sync(out.parent)
    elif os.path.lexists(folder / RESULT):  # the new output is still here, so something else is in its place
        return f"{out}: the old one is in {old}, as something else came into its place when it was replaced: move either away"
    return ""


def _empty(folder: Path) -> None:
    """Remove everything but the marker, which tells the next run, should this one be killed now, that it may remove the rest.

    An old output that is no longer needed is renamed first, so that no run puts back one that is half removed.
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
    """Remove a folder that holds only a marker. Nobody may have that open: NFS would keep it under another name."""
    with suppress(OSError):  # another run was faster, or has put something here, which it will remove
        (folder / MARKER).unlink(missing_ok=True)
        folder.rmdir()
