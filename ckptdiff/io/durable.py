"""Files and folders made durable, and moved to their place in one step (spec 10, step 6)."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}
"""How some network and FUSE file systems say that they do not flush folders."""

NO_FLAGS = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}
"""How a file system, a kernel or a sandbox says that it does not know renameat2, or a flag of it."""

AT_FDCWD, NOREPLACE, EXCHANGE = -100, 1, 2


def sync(path: Path) -> None:
    """Flush a file or folder to the disk; raises OSError, but not for a folder where the file system flushes files only."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC or not os.path.isdir(path):
            raise
    finally:
        os.close(fd)


def sync_tree(path: Path) -> None:
    """Flush a file, or a folder and all that is in it; raises OSError."""

    def fail(error: OSError) -> None:
        raise error

    if path.is_file():
        sync(path)
        return
    for root, _, names in os.walk(path, onerror=fail):
        for name in names:
            sync(Path(root, name))
        sync(Path(root))


def move_new(source: Path, target: Path) -> None:
    """Rename a file or folder to a place where nothing is.

    Raises:
        FileExistsError: something came into being there; it is left as it is. OSError: it cannot be done.
    """
    if _renameat2(source, target, NOREPLACE):
        return
    if source.is_dir():
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(target))
        os.rename(source, target)  # never replaces a file, nor a folder that holds something
        return
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        os.rename(source, target)


def replace_folder(source: Path, target: Path, aside: Path) -> None:
    """Put a folder in the place of another: both exchanged in one step, or ``target`` first moved to ``aside`` where that is not known.

    Raises:
        OSError: it cannot be done. If ``target`` is absent then, ``aside`` has it.
    """
    if not _renameat2(source, target, EXCHANGE):
        os.rename(target, aside)
        os.rename(source, target)


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    """False if this kind of rename is not known here; raises OSError."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), ctypes.c_uint(flags)) == 0:
        return True
    found = ctypes.get_errno()
    if found in NO_FLAGS:
        return False
    raise OSError(found, os.strerror(found), os.fspath(source), None, os.fspath(target))
